import { _ as Presence, a as Channel, b as StateChange, c as Code, d as Gap, f as GapEvent, g as Options, h as Off, i as AnyEvents, l as ControlEvents, m as Member, n as AirwaveError, o as ChannelEvent, p as GapReason, r as AnyEvent, s as ChannelOptions, t as Airwave, u as EventsOf, v as SendOptions, x as TransportName, y as State } from "./types.js";

//#region src/client.d.ts
/**
* A client of the server at `url`: absolute, or relative to the page. Default: where this module was loaded from, if that was a server's `/client.js`.
* Nothing is connected before the first channel.
*/
declare function connect(url?: string | URL, options?: Options): Airwave;
//#endregion
export { Airwave, AirwaveError, AnyEvent, AnyEvents, Channel, ChannelEvent, ChannelOptions, Code, ControlEvents, EventsOf, Gap, GapEvent, GapReason, Member, Off, Options, Presence, SendOptions, State, StateChange, TransportName, connect };