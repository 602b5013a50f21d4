// Made from the application's Rust types by airwave::typescript. Do not edit.

export type Item = { name: string, cents: number, };

/**
 * What it may say.
 */
export type OrderCommands = { "event": "add-items", "data": { items: Array<Item>, } } | { "event": "cancel", "data": { why: string, } };

/**
 * What a listener of an order hears.
 */
export type OrderEvents = { "event": "order-update", "data": { status: Status, items: Array<Item>, } } | { "event": "cancelled", "data": { why: string, } };

export type Status = "open" | "shipped";
