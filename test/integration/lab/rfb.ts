/** The beginning of a VNC session (RFC 6143, 7.1 to 7.3), as a viewer has it. */
import { createCipheriv } from 'node:crypto'
import { once } from 'node:events'
import type { Duplex } from 'node:stream'

const VERSION = 'RFB 003.008\n'
/** Security types. */
const NONE = 1
const VNC_AUTHENTICATION = 2

export interface RfbGreeting {
  readonly securityTypes: readonly number[]
  /** What the screen calls itself; undefined when we were not let in. */
  readonly desktop: string | undefined
}

/** The connection ends with it. */
export async function greetScreen(socket: Duplex, password = ''): Promise<RfbGreeting> {
  try {
    if ((await take(socket, VERSION.length)).toString() !== VERSION) throw new Error('this is no VNC')
    socket.write(VERSION)
    const securityTypes = [...(await take(socket, (await take(socket, 1))[0]!))]
    const type = securityTypes.includes(NONE) ? NONE : VNC_AUTHENTICATION
    socket.write(Buffer.from([type]))
    if (type === VNC_AUTHENTICATION) socket.write(answer(await take(socket, 16), password))
    if ((await take(socket, 4)).readUInt32BE() !== 0) return { securityTypes, desktop: undefined }
    // Shared with others.
    socket.write(Buffer.from([1]))
    const init = await take(socket, 24)
    return { securityTypes, desktop: (await take(socket, init.readUInt32BE(20))).toString() }
  } finally {
    socket.destroy()
  }
}

/** DES with the bits of each byte of the password the other way round; three times with one key it is plain DES. */
function answer(challenge: Uint8Array, password: string): Buffer {
  const key = Buffer.alloc(8)
  key.write(password)
  const mirrored = key.map(byte =>
    Number.parseInt([...byte.toString(2).padStart(8, '0')].reverse().join(''), 2),
  )
  const cipher = createCipheriv('des-ede3', Buffer.concat([mirrored, mirrored, mirrored]), null)
  return cipher.setAutoPadding(false).update(challenge)
}

async function take(socket: Duplex, size: number): Promise<Buffer> {
  for (;;) {
    const taken = socket.read(size) as Buffer | null
    if (taken !== null) return taken
    if (socket.readableEnded) throw new Error(`the screen has hung up before ${size} more bytes`)
    await Promise.race([once(socket, 'readable'), once(socket, 'end')])
  }
}
