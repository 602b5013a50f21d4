import { connect } from "airwave-client";

const at = new URLSearchParams(location.search);
const airwave = connect(at.get("server"), { share: at.has("share") });
const channel = airwave.channel("both/bundled");
const tell = (text) => document.getElementById("heard").append(`${text}\n`);
channel.on("n", (data) => tell(`n ${data}`));
channel.on("state", ({ state, transport }) => tell(`${state} ${transport}`));
try {
  connect();
} catch (error) {
  tell(error.message);
}
