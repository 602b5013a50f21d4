// Rendered on the server: the hook's module is taken in here, too, and must not fail.
import { useChannel } from "airwave-client/react";
import { Watch } from "./watch.jsx";

export default function Page() {
  return (
    <>
      <p id="rendered">{typeof useChannel}</p>
      <Watch />
    </>
  );
}
