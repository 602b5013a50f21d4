"use client";

import { connect } from "airwave-client";
import { useChannel } from "airwave-client/react";
import { useState } from "react";

// Made where the page is rendered on a server, too, which has no location: it must not throw.
connect("/realtime");
const address = globalThis.location ? new URLSearchParams(location.search).get("server") : "/";
const airwave = connect(address);

export function Watch() {
  const [heard, hear] = useState([]);
  const { state } = useChannel(airwave, "both/bundled", { n: (data) => hear((before) => [...before, data]) });
  return (
    <pre id="heard">
      {state}
      {heard.map((data) => `\nn ${data}`)}
    </pre>
  );
}
