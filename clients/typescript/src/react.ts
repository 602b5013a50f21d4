"use client";
// A React hook: a channel for as long as a component is mounted.

import { useEffect, useReducer, useRef } from "react";
import type { Airwave, AnyEvents, Channel, ChannelEvent, ChannelOptions, ControlEvents, EventsOf, Member, State, TransportName } from "./types.js";

/**
 * What a component listens to: its own events, and what the client tells (`gap`, `end`, `resumed`,
 * `stale`, `error`).
 */
export type Listeners<E> = {
  [K in Exclude<keyof EventsOf<E> & string, keyof ControlEvents>]?: (data: EventsOf<E>[K], event: ChannelEvent<K, EventsOf<E>[K]>) => void;
} & { [K in keyof ControlEvents]?: (told: ControlEvents[K]) => void };

/** A channel as a component sees it; it is rendered anew when one of these changes. */
export interface UsedChannel<E, C> {
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
export function useChannel<E = AnyEvents, C = AnyEvents>(airwave: Airwave, name: string | null, listeners: Listeners<E> = {}, options: ChannelOptions = {}): UsedChannel<E, C> {
  const newest = useRef(listeners);
  newest.current = listeners;
  const used = useRef<Channel<E, C> | undefined>(undefined);
  const [, render] = useReducer((count: number) => count + 1, 0);
  const wanted = JSON.stringify(options);

  useEffect(() => {
    if (name === null) return undefined;
    const channel = airwave.channel<E, C>(name, JSON.parse(wanted) as ChannelOptions);
    used.current = channel;
    const call = (event: string, ...told: unknown[]): void => (newest.current as Record<string, ((...told: unknown[]) => void) | undefined>)[event]?.(...told);
    const offs = [
      channel.on("*", (data, event) => {
        if (event.event !== "airwave.gap") call(event.event, data, event);
      }),
      // Subscribes only to what has a callback: a loss without a callback goes to the console.
      ...(["gap", "end", "resumed", "stale", "error"] as const).filter((event) => newest.current[event]).map((event) => channel.on(event, (told) => call(event, told))),
      ...(["state", "presence"] as const).map((event) =>
        channel.on(event, (told) => {
          call(event, told);
          render();
        }),
      ),
    ];
    render();
    return () => {
      for (const off of offs) off();
      used.current = undefined;
      channel.close();
    };
  }, [airwave, name, wanted]);

  const channel = used.current;
  const send = (...told: Parameters<Channel<E, C>["send"]>): Promise<unknown> =>
    used.current ? used.current.send(...told) : Promise.reject(new Error("there is no channel to send to"));
  return {
    channel,
    state: channel?.state ?? "connecting",
    transport: channel?.transport,
    members: channel?.members ?? [],
    send: send as Channel<E, C>["send"],
  };
}
