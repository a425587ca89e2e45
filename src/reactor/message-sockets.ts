/**
 * Messages with file descriptors over Unix sockets, for protocols that hand over memory (vhost-user). The control thread
 * asks for one message at a time; the reactor that has the socket in its ring reads it:
 *
 *   control thread                          reactor
 *   MessageSocket.receive()  --receive-->   recvmsg of one header and its payload, when they are there
 *                            <--message--   bytes, descriptors
 *   MessageSocket.send()     sendmsg at once: an answer is small, and a peer that does not read loses its connection
 */

/** How a message is cut out of the stream. Plain data, since it travels between threads. */
export interface Framing {
  /** Every message begins with so many bytes … */
  readonly headerBytes: number
  /** … of which four, little-endian, at this offset say how many bytes follow. */
  readonly sizeAt: number
  /** More than this is a fault of the peer, and ends the connection. */
  readonly payloadBytesMax: number
  readonly descriptorsMax: number
}

export interface SocketMessage {
  /** Header and payload. */
  readonly bytes: Uint8Array
  /** The receiver's to close. */
  readonly descriptors: readonly number[]
}
