import { _ as Presence, a as Channel, b as StateChange, c as Code, d as Gap, f as GapEvent, g as Options, h as Off, i as AnyEvents, l as ControlEvents, m as Member, n as AirwaveError, o as ChannelEvent, p as GapReason, r as AnyEvent, s as ChannelOptions, t as Airwave, u as EventsOf, v as SendOptions, x as TransportName, y as State } from "./types.js";
//#region src/client.d.ts
/**
* Makes a client of the server at `url`: absolute, or relative to the page.
*
* The client connects with its first channel. Without a page to be relative to (on a server that
* renders one), it refuses its channels.
*
* Throws an {@link AirwaveError} without a URL. The server's own `/client.js` has a default: the
* place that it was loaded from.
*/
declare function connect(url: string | URL, options?: Options): Airwave;
//#endregion
export { Airwave, AirwaveError, AnyEvent, AnyEvents, Channel, ChannelEvent, ChannelOptions, Code, ControlEvents, EventsOf, Gap, GapEvent, GapReason, Member, Off, Options, Presence, SendOptions, State, StateChange, TransportName, connect };