/**
 * One reactor's way to one device: checks the range, counts, and hands on to the driver. Front ends and filters see only
 * this class.
 */
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme.ts'
import type { BdevInfo, DriverChannel } from './bdev.ts'
import { type BdevIo, IoType } from './io.ts'
