/** What a reactor runs for the target: its part of it, and the transport that brings hosts to it. */
import type { ReactorAcceptor } from '../reactor/acceptor.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { NVMF_SERVICE } from './listeners.ts'
import { Topic } from './messages.ts'
import { NvmfReactor } from './reactor-target.ts'
import type { ChannelSource } from './replica.ts'
import { TcpTransport, type TcpTransportStats } from './tcp/transport.ts'

const NO_STATS: TcpTransportStats = {
  admin_qpairs: 0,
  io_qpairs: 0,
  current_admin_qpairs: 0,
  current_io_qpairs: 0,
  completed_nvme_io: 0,
}

export function serveNvmf(reactor: Reactor, channels: ChannelSource, acceptor: ReactorAcceptor): void {
  let transport: TcpTransport | null = null
  const target = new NvmfReactor(reactor, channels, options => {
    const tcp = new TcpTransport({ reactor, target, options, onEnded: () => acceptor.ended() })
    transport = tcp
    acceptor.serve(NVMF_SERVICE, (socket, listenerId) => tcp.adopt(socket, listenerId))
  })
  reactor.control.on(Topic.STATS, () => transport?.stats ?? NO_STATS)
  reactor.control.on<number>(Topic.UNLISTEN, listenerId =>
    transport?.closeListener(listenerId, 'the listener is closed'),
  )
}
