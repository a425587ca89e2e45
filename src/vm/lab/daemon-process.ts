/** A daemon of its own for a demonstration: `qpair serve` as a child, with a socket and a state directory of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import { connect, type RpcClient } from '../../rpc/client.ts'
import { withParent } from './programs.ts'

/** A client that knows the methods by name only. */
export type Client = Pick<RpcClient<[]>, 'request' | 'close'>

export const LOOPBACK = '127.0.0.1'

export class DaemonProcess<AnyClient extends Client = Client> {
  readonly client: AnyClient
  readonly #child: ChildProcess
  readonly #exited: Promise<unknown>

  private constructor(child: ChildProcess, client: AnyClient) {
    this.#child = child
    this.client = client
    this.#exited = new Promise(resolve => child.once('exit', resolve))
  }

  /** `detached`: Ctrl-C on the terminal is not for it. */
  static async start<AnyClient extends Client = Client>(
    socket: string,
    state: string,
    { detached = false }: { readonly detached?: boolean } = {},
  ): Promise<DaemonProcess<AnyClient>> {
    const launcher = fileURLToPath(new URL('../../../bin/qpair.js', import.meta.url))
    const serve = [process.execPath, launcher, 'serve', '-r', socket, '--state', state, '--loglevel', 'ERROR']
    const [program, ...args] = withParent(serve, 'TERM')
    const child = spawn(program!, args, { detached, stdio: ['ignore', 'ignore', 'inherit'] })
    try {
      const client: Client = await connect<[]>(socket, { retries: 100 })
      // The type of a client says what is asked of it; the daemon is this version's own.
      return new DaemonProcess(child, client as AnyClient)
    } catch (error) {
      child.kill('SIGKILL')
      throw error
    }
  }

  get pid(): number {
    return this.#child.pid!
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  stop(): Promise<void> {
    return this.end('SIGTERM')
  }

  /** Waits until it has ended. */
  async end(signal: NodeJS.Signals): Promise<void> {
    this.client.close()
    if (!this.isRunning) return
    this.kill(signal)
    await this.#exited
  }
}

/** One of two gateways that serve the same images, as one would run them on two machines. */
export interface GatewayOptions {
  readonly nqn: string
  readonly serialNumber: string
  readonly images: readonly string[]
  readonly port: number
  /** 0 or 1. Controller ids of the two must not overlap: to the host they are one subsystem. */
  readonly index: number
}

const CNTLIDS = 32760

/** The calls that anybody would type. They are kept in the daemon's state directory. */
export async function openGateway(client: Client, gateway: GatewayOptions): Promise<void> {
  const { nqn, serialNumber, images, port, index } = gateway
  const min_cntlid = index * CNTLIDS + 1
  await client.request('nvmf_create_transport', { trtype: 'TCP' })
  await client.request('nvmf_create_subsystem', {
    ...{ nqn, serial_number: serialNumber, allow_any_host: true, ana_reporting: true },
    ...{ min_cntlid, max_cntlid: min_cntlid + CNTLIDS - 2 },
  })
  for (const [number, filename] of images.entries()) {
    const name = `disk${number}`
    await client.request('bdev_uring_create', { name, filename, block_size: 512 })
    await client.request('nvmf_subsystem_add_ns', { nqn, namespace: { bdev_name: name } })
  }
  await client.request('nvmf_subsystem_add_listener', {
    nqn,
    listen_address: { trtype: 'TCP', adrfam: 'IPv4', traddr: LOOPBACK, trsvcid: String(port) },
  })
}

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.on('error', reject)
    server.listen(0, LOOPBACK, resolve)
  })
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}
