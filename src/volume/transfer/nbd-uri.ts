/** Where an NBD export is (the NBD URI specification): `nbd://host[:port]/export`, `nbd+unix:///export?socket=path`. */
import { RpcError } from '../../core/errors.ts'
import { NBD_PORT } from '../../spec/nbd.ts'

export interface NbdAddress {
  readonly host: string
  readonly port: number
  /** Instead of host and port. */
  readonly socketPath: string | undefined
  readonly exportName: string
}

/** Throws `RpcError` EINVAL. */
export function parseNbdUri(text: string): NbdAddress {
  const refuse = (why: string): never => {
    throw new RpcError('EINVAL', `${text} is not an NBD address that can be used: ${why}`)
  }
  if (!URL.canParse(text)) refuse('write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH')
  const url = new URL(text)
  const exportName = decodeURIComponent(url.pathname.replace(/^\//, ''))
  const port = url.port === '' ? NBD_PORT : Number(url.port)
  switch (url.protocol) {
    case 'nbd:':
      if (url.hostname === '') refuse('it has no host')
      return { host: url.hostname.replace(/^\[|\]$/g, ''), port, socketPath: undefined, exportName }
    case 'nbd+unix:': {
      const socketPath = url.searchParams.get('socket') ?? refuse('?socket=PATH is missing')
      return { host: '', port, socketPath, exportName }
    }
    default:
      return refuse(`${url.protocol} is not spoken here, only nbd: and nbd+unix: without TLS`)
  }
}
