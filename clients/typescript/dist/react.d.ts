import { a as Channel, i as AnyEvents, l as ControlEvents, m as Member, o as ChannelEvent, s as ChannelOptions, t as Airwave, u as EventsOf, x as TransportName, y as State } from "./types.js";

//#region src/react.d.ts
/**
* What a component listens to: its own events, and what the client tells (`gap`, `end`, `resumed`,
* `stale`, `error`).
*/
type Listeners<E> = { [K in Exclude<keyof EventsOf<E> & string, keyof ControlEvents>]?: (data: EventsOf<E>[K], event: ChannelEvent<K, EventsOf<E>[K]>) => void } & { [K in keyof ControlEvents]?: (told: ControlEvents[K]) => void };
/** A channel as a component sees it; it is rendered anew when one of these changes. */
interface UsedChannel<E, C> {
  /** Undefined before the first effect, and without a name. */
  readonly channel: Channel<E, C> | undefined;
  readonly state: State;
  readonly transport: TransportName | undefined;
  readonly members: readonly Member[];
  /** As of the channel; rejects while there is none. */
  readonly send: Channel<E, C>["send"];
}
/**
* Listens to `name` while the component is mounted. Listeners may be made anew at each render.
* Components that use the same name share one channel.
*
* @param name null: no channel for now.
*/
declare function useChannel<E = AnyEvents, C = AnyEvents>(airwave: Airwave, name: string | null, listeners?: Listeners<E>, options?: ChannelOptions): UsedChannel<E, C>;
//#endregion
export { Listeners, UsedChannel, useChannel };