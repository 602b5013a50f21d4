// What the client must do wherever it runs: in Node, Deno, Bun, and in workers of a browser, which
// load this very file. It imports nothing, speaks no TypeScript, and asks no one. The program that
// runs it does to the server what `say` tells.

const same = (given, wanted, what) => {
  const [a, b] = [JSON.stringify(given), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${what}: ${a} in place of ${b}`);
};

/**
 * Over one transport: connect, send, be cut off while something is published, resume, read to the
 * end.
 */
async function one(connect, url, name, transport, options, say) {
  // A token travels in a header or in a subprotocol, and neither is the same in every runtime.
  const airwave = connect(url, { backoff: [50, 300], token: () => "to.ken", ...options, transport });
  const channel = airwave.channel(`both/${name}-${transport}`);
  const heard = [];
  let told;
  const until = async (done, what) => {
    const late = setTimeout(() => told?.(new Error(`${transport}: waited for ${what}; state ${channel.state}, heard ${JSON.stringify(heard)}`)), 30_000);
    while (!done()) {
      const error = await new Promise((wake) => (told = wake));
      if (error) throw error;
    }
    clearTimeout(late);
  };
  const note = (entry) => {
    heard.push(entry);
    told?.();
  };
  const states = [];
  channel.on("state", ({ state }) => {
    states.push(state);
    told?.();
  });
  channel.on("gap", ({ reason }) => note(`gap: ${reason}`));
  channel.on("resumed", () => note("resumed"));
  channel.on("error", ({ code, message }) => note(`error: ${code} ${message}`));
  channel.on("n", (data) => note(data instanceof Uint8Array ? [...data] : data));

  await until(() => channel.state === "open", "the connection");
  same(channel.transport, transport, "the transport");
  same(await channel.send("n", { text: "hi 😀" }), null, "the reply");
  await channel.send("n", new Uint8Array([0, 1, 254, 255]));
  await until(() => heard.length === 2, "what was sent");
  same(heard, [{ text: "hi 😀" }, [0, 1, 254, 255]], "what was heard");

  const refused = await airwave.channel("unknown/a").send("n", 1).catch(({ code }) => code);
  same(refused, "unknown-channel", "the refusal");

  // The server dies, and while it is gone it starts again and an event is published.
  const from = states.length;
  say({ cut: channel.name });
  await until(() => states.indexOf("waiting", from) >= 0, "the loss of the connection");
  say({ down: channel.name });
  await until(() => heard.length === 4, "what was missed");
  same(heard.slice(2).sort(), ["missed", "resumed"], "what the client came back to");

  const reading = (async () => {
    const events = [];
    for await (const { event, data } of channel) events.push([event, data]);
    return events;
  })();
  say({ finish: channel.name });
  same(await reading, [["n", "last"]], "what was read to the end");
  same(channel.state, "ended", "the state");
  airwave.close();
}

/** Both transports, side by side. Throws what is wrong. */
export async function conform(connect, url, name, options, say) {
  await Promise.all(["sse", "websocket"].map((transport) => one(connect, url, name, transport, options, say)));
  // No option names the transport: the server chooses.
  const airwave = connect(url, options);
  const channel = airwave.channel(`both/${name}-auto`);
  await new Promise((done) => channel.on("state", ({ state }) => state === "open" && done()));
  same(channel.transport, "websocket", "the server's choice");
  airwave.close();
}
