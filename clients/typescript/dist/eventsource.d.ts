//#region src/eventsource.d.ts
/**
* A `fetch` that opens event streams with `EventSource`, and does everything else as ever.
*
* An `EventSource` sends no headers, so streams go without a token (cookies work), tells no status,
* so a refused stream is tried again, and hears only the events whose names it was given: `names`.
*/
declare function overEventSource(names: readonly string[], Source?: typeof EventSource): typeof fetch;
//#endregion
export { overEventSource };