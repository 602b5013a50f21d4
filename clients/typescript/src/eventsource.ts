// The platform's own EventSource in place of fetch, for applications that need it:
// `connect(url, { fetch: overEventSource(["order-update"]) })`.

const CONTROL = ["subscribed", "gap", "end", "stale", "error", "heartbeat", "presence", "join", "leave", "update"].map((name) => `airwave.${name}`);

/**
 * A `fetch` that opens event streams with `EventSource`, and does everything else as ever.
 *
 * An `EventSource` sends no headers, so streams go without a token (cookies work), tells no status,
 * so a refused stream is tried again, and hears only the events whose names it was given: `names`.
 */
export function overEventSource(names: readonly string[], Source: typeof EventSource = EventSource): typeof fetch {
  return async (input, init) => {
    const headers = new Headers(init?.headers);
    if (headers.get("accept") !== "text/event-stream") return fetch(input, init);
    const source = new Source(input instanceof Request ? input.url : input, { withCredentials: init?.credentials === "include" });
    const encoder = new TextEncoder();
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        const over = (): void => {
          source.close();
          // It would come back by itself, but with the channels of now; the client comes back with
          // those of then.
          try {
            controller.close();
          } catch {
            // The client has cancelled it already.
          }
        };
        source.onerror = over;
        init?.signal?.addEventListener("abort", over);
        for (const name of [...CONTROL, ...names]) {
          source.addEventListener(name, ({ data }: MessageEvent<string>) => controller.enqueue(encoder.encode(`event: ${name}\ndata: ${data}\n\n`)));
        }
      },
      cancel: () => source.close(),
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
}
