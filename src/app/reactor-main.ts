/** The module that each reactor thread runs. */
import { workerData } from 'node:worker_threads'
import { runReactor } from '../reactor/run.ts'
import type { ReactorOptions } from '../reactor/thread.ts'
import { loadDrivers } from './drivers.ts'
import { buildServices, type ReactorApplication } from './reactor-services.ts'

const { plugins } = (workerData as ReactorOptions).application as ReactorApplication
const drivers = await loadDrivers(plugins)

runReactor(reactor => buildServices(reactor, drivers))
