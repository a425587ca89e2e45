/**
 * For authors of disks and drivers: `import { defineDisk } from 'qpair/driver'`. See docs/guides/write-a-driver.md.
 *
 * A disk (`defineDisk`) is a few asynchronous functions over bytes, run in a thread of its own. A driver (`defineDriver`)
 * is the contract that the built-in devices implement, run on the reactors themselves.
 */
export { z } from 'zod'
export {
  type BdevInfo,
  type ChannelContext,
  type Driver,
  type DriverChannel,
  type DriverControl,
  defineDriver,
  type Preferred,
} from './bdev/bdev.ts'
export type { Channel } from './bdev/channel.ts'
export { statusFromErrno } from './bdev/errno-status.ts'
export { type ChildIo, type ChildOwner, describeFilter, Forwarder } from './bdev/filters/forwarder.ts'
export { BdevIo, type IoOwner, IoType, Segments } from './bdev/io.ts'
export { defineDisk, type PluginDisk, type PluginModule, type PluginOptions } from './bdev/plugin/disk.ts'
export { deriveUuid } from './bdev/uuid.ts'
export { RpcError } from './core/errors.ts'
export type { Reactor } from './reactor/reactor.ts'
export { Status } from './spec/nvme-status.ts'
export { bytesAt, memcmp, memcpy, memset } from './sys/memory.ts'
