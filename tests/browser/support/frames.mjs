// The binary frame of docs/protocol.md, section 5, written from the document alone.

const NO_ID = 0xffff_ffff_ffff_ffffn;

/** A client's binary command. `id`: a number, or null for none. */
export function encodeCommand(channel, event, payload, id = null) {
  const [name, said] = [Buffer.from(channel), Buffer.from(event)];
  const number = Buffer.alloc(8);
  number.writeBigUInt64BE(id === null ? NO_ID : BigInt(id));
  return Buffer.concat([Buffer.from([1, name.length]), name, Buffer.from([said.length]), said, number, payload]);
}

/** A server's binary event. */
export function decodeEvent(bytes) {
  const frame = Buffer.from(bytes);
  if (frame[0] !== 1) throw new Error(`a binary frame of format ${frame[0]}`);
  const channelEnd = 2 + frame[1];
  const eventEnd = channelEnd + 1 + frame[channelEnd];
  return {
    channel: frame.toString("utf8", 2, channelEnd),
    event: frame.toString("utf8", channelEnd + 1, eventEnd),
    id: frame.readBigUInt64BE(eventEnd).toString(),
    payload: frame.subarray(eventEnd + 8),
  };
}
