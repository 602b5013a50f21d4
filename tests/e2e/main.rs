//! End to end: a real node on real sockets, and what its clients hear.

#![allow(clippy::unwrap_used)]

/// The node, its clients, and the ways by which a client comes to its events.
mod support;

/// Who hears what: every event once and in order, late joiners, conflation, the end of a channel.
mod delivery;
/// Every "no": its code, its form on each transport, origins and tokens.
mod refusals;
/// Coming back: no gap, no duplicate, one cursor for all transports, and gaps that are announced.
mod resume;

/// Backends publish and read history over HTTP.
mod publish;

/// What an event says about itself beside its data.
mod attributes;

/// What applications are asked, and what clients send.
mod handlers;
/// Listeners that do not read, and those that are gone.
mod slow;

/// Connections: kept, pipelined, shared, taken back; an application's own routes beside ours.
mod connection;
/// Drain, kill, restart.
mod drain;
/// Heads, bodies and names at the edges of HTTP: hosts, weights, codings, surrogates.
mod edges;
/// Input that no client should send.
mod hostile;
/// Heartbeats, silence, HEAD, the stream byte by byte.
mod line;
/// A broker, a format, a transport and a rule of an application's own.
mod own_parts;

/// A broker that does not answer: what waits, and what does not.
mod outage;

/// What one client may take of a node: pages, requests, names.
mod resources;

/// Who is in a channel, over two nodes and every transport.
mod presence;
