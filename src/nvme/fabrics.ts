/** The Connect command: it makes a TCP connection a queue of a controller (Base 2.1, section 6.3). */
import { Segments } from '../bdev/io.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { ConnectData, ConnectSqe, FABRICS_OPCODE, FabricsSqe, FabricsType } from '../spec/nvmf.ts'
import type { TcpQueue } from './tcp/queue.ts'
import { Transfer } from './tcp/slots.ts'

export interface ConnectOptions {
  /** 0 is the admin queue. */
  readonly qid: number
  /** The controller the queue belongs to; `CNTLID_DYNAMIC` on the admin queue. */
  readonly cntlid: number
  /** Entries of the queue. */
  readonly sqSize: number
  /** 0 for none, and on I/O queues. */
  readonly keepAliveMs: number
  readonly disableSqFlowControl: boolean
  readonly subnqn: string
  readonly hostnqn: string
  /** 16 bytes. */
  readonly hostId: Uint8Array
}

/** Ends a command that is not an I/O: `dw0` and `dw1` as in its completion. */
export type CommandEnd = (statusField: number, dw0: number, dw1: number) => void

/** Submits Connect on a queue that is ready and unused; `done` is the command's context. */
export function submitConnect(
  reactor: Reactor,
  queue: TcpQueue,
  options: ConnectOptions,
  done: CommandEnd,
): void {
  const { view, base } = reactor.arena
  const buffer = reactor.buffers.acquire(ConnectData.size)
  if (buffer === 0) {
    queue.close('the reactor has no memory left to connect a queue')
    return
  }
  const data = buffer - base
  reactor.arena.u8.fill(0, data, data + ConnectData.size)
  ConnectData.hostid.set(view, data, options.hostId)
  ConnectData.cntlid.set(view, data, options.cntlid)
  ConnectData.subnqn.set(view, data, options.subnqn)
  ConnectData.hostnqn.set(view, data, options.hostnqn)
  const segments = new Segments(1)
  segments.set(buffer, ConnectData.size)

  const slot = queue.acquire()
  const sqe = queue.begin(slot, FABRICS_OPCODE) * 4
  FabricsSqe.fctype.set(view, sqe, FabricsType.CONNECT)
  ConnectSqe.qid.set(view, sqe, options.qid)
  ConnectSqe.sqsize.set(view, sqe, options.sqSize - 1)
  ConnectSqe.disableSqFlow.set(view, sqe, options.disableSqFlowControl ? 1 : 0)
  ConnectSqe.kato.set(view, sqe, options.keepAliveMs)
  const end: CommandEnd = (statusField, dw0, dw1) => {
    reactor.buffers.release(buffer, ConnectData.size)
    done(statusField, dw0, dw1)
  }
  queue.submit(slot, Transfer.TO_CONTROLLER, segments, ConnectData.size, end)
}
