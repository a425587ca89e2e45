/** SPDK has several transports of blk controllers; here is one, and these methods say so. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { TRANSPORT } from './context.ts'

const transportRow = z.object({ name: z.string() })

const createTransport = method({
  name: 'virtio_blk_create_transport',
  summary: `Accepted for SPDK's clients: there is one transport, ${TRANSPORT}, from the start.`,
  params: z.object({ name: z.string().describe('The transport') }),
  result: done,
  errors: { EEXIST: 'it is there already', ENOENT: 'there is no such transport' },
  relaxed: true,
  cli: { positional: ['name'] },
  run({ name }): true {
    if (name.toLowerCase() === TRANSPORT) {
      throw new RpcError(
        'EEXIST',
        `the transport ${TRANSPORT} is there from the start: nothing is to be done`,
      )
    }
    throw new RpcError(
      'ENOENT',
      `there is no transport ${name}: ${TRANSPORT} is the only one, and there already`,
    )
  },
})

const getTransports = method({
  name: 'virtio_blk_get_transports',
  summary: 'Lists the transports of blk controllers: there is one.',
  params: z.object({ name: z.string().optional().describe('Only this transport') }),
  result: z.array(transportRow),
  errors: { ENODEV: 'there is no such transport' },
  run({ name }) {
    if (name === undefined || name.toLowerCase() === TRANSPORT) return [{ name: TRANSPORT }]
    throw new RpcError('ENODEV', `there is no transport ${name}: ${TRANSPORT} is the only one`)
  },
})

export const transportMethods = [createTransport, getTransports]
