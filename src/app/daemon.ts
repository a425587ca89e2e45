/** The daemon: reactors, everything that has state, and the RPC server in front of it. */
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { IscsiDisks } from '../bdev/drivers/iscsi/disks.ts'
import { classifyPlugins, createPluginDisks } from '../bdev/drivers/plugin.ts'
import { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { startProgramsApart } from '../core/program-process.ts'
import { Gateway } from '../gateway/gateway.ts'
import { explainNoReactor, requireIoUring } from '../host/checks/daemon.ts'
import { NbdExports } from '../nbd/exports.ts'
import { NvmeControllers } from '../nvme/nvme-controllers.ts'
import { NvmfTarget } from '../nvmf/target.ts'
import { RbdImages } from '../rbd/images.ts'
import { Acceptor } from '../reactor/acceptor.ts'
import { Bell } from '../reactor/bell.ts'
import { MessageSockets } from '../reactor/message-sockets.ts'
import { resolveAccess, type SocketAccess } from '../reactor/socket-access.ts'
import { ReactorThreads } from '../reactor/thread.ts'
import type { MethodCall } from '../rpc/config.ts'
import { Dispatcher, type RpcInfo } from '../rpc/dispatcher.ts'
import { type JobStatus, Jobs } from '../rpc/jobs.ts'
import { RpcServer } from '../rpc/server.ts'
import { lockFile } from '../sys/file-lock.ts'
import { VhostControllers } from '../vhost/controllers.ts'
import { FrontEnds } from '../vhost/session/front-ends.ts'
import { makeSocketDirectory } from '../vhost/socket-directory.ts'
import { VirtioControllers } from '../virtio/virtio-controllers.ts'
import { ServerImages } from '../vm/disk/server-images.ts'
import { LibvirtGuests } from '../vm/libvirt/guests.ts'
import { OwnGuests } from '../vm/run/own-guests.ts'
import { StoragePools } from '../volume/pools.ts'
import { Secrets } from '../volume/secrets.ts'
import { Turns } from '../volume/turns.ts'
import { nameOwner } from '../volume/volume-name.ts'
import { Volumes } from '../volume/volumes.ts'
import { Workloads } from '../workload/workloads.ts'
import { Configuration } from './configuration.ts'
import { loadDrivers } from './drivers.ts'
import { KeptCalls } from './kept-calls.ts'
import { methods } from './methods.ts'
import { Notifications } from './notifications.ts'
import type { ServeOptions } from './options.ts'
import type { ReactorApplication } from './reactor-services.ts'
import { makeStateDirectory, readConfig, type SavedConfig, STATE_FILE, writeConfig } from './state-file.ts'
import { stateIdentity } from './state-identity.ts'
import { VERSION } from './version.ts'

const log = logger('app')

const SPIN_US = 100
/** How long the end of the daemon waits for what comes up at that moment. */
const COMING_MS = 1000
/** Address space a reactor may use for buffers, rings and connections; memory only as it is touched. */
const ARENA_BYTES = 512 << 20

/** What methods find: each names in the type of its context what it needs. */
export interface AppContext {
  readonly rpc: RpcInfo
  readonly reactors: ReactorThreads
  readonly bdevs: BdevRegistry
  readonly nvme: NvmeControllers
  readonly rbd: RbdImages
  readonly virtio: VirtioControllers
  readonly iscsi: IscsiDisks
  readonly nvmf: NvmfTarget
  readonly gateway: Gateway
  readonly vhost: VhostControllers
  readonly nbd: NbdExports
  readonly secrets: Secrets
  readonly pools: StoragePools
  readonly volumes: Volumes
  readonly libvirtGuests: LibvirtGuests
  readonly ownGuests: OwnGuests
  readonly workloads: Workloads
  readonly jobs: Jobs
  readonly configuration: Configuration
  readonly kept: KeptCalls
  readonly notifications: Notifications
  readonly initialization: { start(): Promise<void>; wait(): Promise<void> }
}

type DaemonOptions = Pick<
  ServeOptions,
  'rpcSocket' | 'cpus' | 'configFile' | 'stateDirectory' | 'vhost' | 'waitForRpc' | 'plugins'
>

/** What the command line says of the sockets of vhost controllers, looked up. */
interface VhostSettings {
  readonly directory: string
  readonly defaultAccess: SocketAccess
}

interface DirectorySettings {
  readonly vhostSettings: VhostSettings
  /** Where guests that outlive the daemon are kept; undefined without a state directory. */
  readonly guestDirectory: string | undefined
}

/** How the parts of the daemon call its methods: in their turn, or at once. */
type Dispatch = Pick<Dispatcher<AppContext>, 'call' | 'replay' | 'exclusive'>

/** Everything with state, on the control thread. */
function buildContext(
  reactors: ReactorThreads,
  bdevs: BdevRegistry,
  { vhostSettings, guestDirectory }: DirectorySettings,
  dispatch: Dispatch,
  rest: Pick<AppContext, 'rpc' | 'initialization' | 'secrets'>,
  save: () => Promise<void>,
): AppContext {
  const notifications = new Notifications()
  bdevs.listen({
    added: ({ name }) => {
      notifications.add('bdev_register', name)
      kept.deviceCame()
    },
    removed: ({ name }) => notifications.add('bdev_unregister', name),
  })
  const jobEnded = ({ id }: JobStatus, wasSaved: boolean): void => {
    notifications.add('job_end', String(id))
    if (!wasSaved) return
    // What is saved while the daemon comes up would be half of the configuration.
    rest.initialization
      .wait()
      .then(() => dispatch.exclusive(save))
      .catch((error: Error) => log.error(`job ${id} has ended: ${error.message}`))
  }
  // While the daemon comes up, the jobs that start are those that were saved. The method that started one fails when it cannot
  // be saved.
  const jobSaved = (): Promise<void> =>
    rest.rpc.state === 'startup' ? Promise.resolve() : dispatch.exclusive(save).catch(() => {})
  const jobs = new Jobs(jobEnded, undefined, jobSaved)
  const nvme = new NvmeControllers(bdevs, reactors)
  const acceptor = new Acceptor(reactors)
  const sockets = new MessageSockets(reactors, acceptor)
  const nvmf = new NvmfTarget({ reactors, sockets: acceptor, bdevs, firmwareRevision: VERSION })
  const vhost = new VhostControllers({
    ...vhostSettings,
    reactors,
    bdevs,
    listen: new FrontEnds(reactors, sockets).listen,
  })
  const nbd = new NbdExports({ reactors, acceptor, bdevs })
  const rbd = new RbdImages(bdevs, reactors)
  const { secrets } = rest
  const pools = new StoragePools({
    services: { call: dispatch.call, rbd, secrets },
    notify: (type, context) => notifications.add(type, context),
    onRemote: () => startProgramsApart(new URL('../core/program-main.js', import.meta.url)),
  })
  void rest.initialization.wait().then(() => pools.daemonIsUp())
  const gateway = new Gateway({
    ...dispatch,
    nvmf,
    rbd,
    bell: new Bell(reactors),
    config: () => [...bdevs.config(), ...nvmf.config()],
  })
  const isSlow = ({ method }: MethodCall): boolean =>
    methods.some(({ name, concurrent }) => name === method && concurrent) && !gateway.shares(method)
  const replay = ({ method, params }: MethodCall): Promise<unknown> => dispatch.replay(method, params)
  const kept = new KeptCalls({
    isSlow,
    run: call =>
      isSlow(call) ? replay(call) : dispatch.exclusive(() => bdevs.replaying(() => replay(call))),
    save: () => dispatch.exclusive(save),
  })
  const images = new ServerImages()
  const volumes = new Volumes({
    ...{ pools, bdevs, jobs, reactors, ...dispatch },
    guestsOf: volume => images.writersOf(volume),
  })
  const guestParts = {
    ...{ bdevs, volumes, vhost, nbd, call: dispatch.call, turns: new Turns() },
    images,
    socketDirectory: vhostSettings.directory,
  }
  const ownGuests = new OwnGuests({ ...guestParts, directory: guestDirectory })
  void rest.initialization.wait().then(() => ownGuests.adopt())
  return {
    ...rest,
    reactors,
    bdevs,
    nvme,
    rbd,
    virtio: new VirtioControllers({ bdevs, reactors, sockets }),
    iscsi: new IscsiDisks(bdevs, reactors),
    nvmf,
    gateway,
    vhost,
    nbd,
    pools,
    volumes,
    libvirtGuests: new LibvirtGuests(guestParts),
    ownGuests,
    workloads: new Workloads(bdevs, reactors),
    jobs,
    configuration: new Configuration(
      [secrets, pools, bdevs, jobs, nvmf, gateway, ...vhost.configurables, nbd],
      {
        ...{ kept, isSlow },
        isKeptElsewhere: call => gateway.keeps(call),
      },
    ),
    kept,
    notifications,
  }
}

export class Daemon {
  readonly context: AppContext
  readonly #options: DaemonOptions
  /** Modules of `--plugin` that are disks. */
  readonly #pluginDisks: readonly string[]
  readonly #dispatcher: Dispatcher<AppContext>
  readonly #rpc: RpcInfo = { state: 'startup', methods }
  readonly #statePath: string | undefined
  #releaseState: () => void = () => {}
  #server: RpcServer | undefined
  #isUp = false
  readonly #waiting: (() => void)[] = []

  private constructor(
    options: DaemonOptions,
    reactors: ReactorThreads,
    bdevs: BdevRegistry,
    vhostSettings: VhostSettings,
    pluginDisks: readonly string[],
  ) {
    this.#options = options
    this.#pluginDisks = pluginDisks
    const { stateDirectory } = options
    const inState = (name: string): string | undefined =>
      stateDirectory === undefined ? undefined : join(resolve(stateDirectory), name)
    this.#statePath = inState(STATE_FILE)
    const secrets = new Secrets(inState('secrets'))
    const initialization = { start: () => this.#initialize(), wait: () => this.#whenUp() }
    const dispatch: Dispatch = {
      call: (method, params) => this.#dispatcher.call(method, params),
      replay: (method, params) => this.#dispatcher.replay(method, params),
      exclusive: work => this.#dispatcher.exclusive(work),
    }
    this.context = buildContext(
      reactors,
      bdevs,
      {
        vhostSettings,
        guestDirectory: stateDirectory === undefined ? undefined : join(resolve(stateDirectory), 'guests'),
      },
      dispatch,
      { rpc: this.#rpc, initialization, secrets },
      () => this.#save(),
    )
    this.#dispatcher = new Dispatcher({
      methods,
      context: this.context,
      needsTurn: ({ name }) => this.context.gateway.shares(name),
      aroundMutation: ({ name }, params, run) => this.context.gateway.change(name, params, run),
      afterMutation: () => this.#save(),
    })
  }

  /**
   * Resolves when the daemon is up, or, with `waitForRpc`, when it can be told to come up. Throws `RpcError` or `SysError`
   * when it cannot; nothing of it is left then.
   */
  static async start(options: DaemonOptions): Promise<Daemon> {
    await requireIoUring()
    const plugins = await classifyPlugins(options.plugins)
    const drivers = await loadDrivers(plugins.drivers)
    const { directory, mode, owner } = options.vhost
    const defaultAccess = await resolveAccess({ mode, owner })
    if (directory !== undefined) await makeSocketDirectory(directory)
    // In the current directory, which nobody may have chosen, it is a controller that says what is wrong.
    const vhostSettings = { directory: directory ?? process.cwd(), defaultAccess }
    const application: ReactorApplication = { plugins: plugins.drivers }
    const reactors = await ReactorThreads.start({
      entry: new URL('./reactor-main.js', import.meta.url),
      cpus: options.cpus,
      spinUs: SPIN_US,
      arenaBytes: ARENA_BYTES,
      application,
      onFailure: (index, error) => {
        log.error(`reactor ${index} failed, its state is lost: ${error.stack ?? error.message}`)
        process.exit(70)
      },
    }).catch(error => {
      throw explainNoReactor(error)
    })
    const daemon = new Daemon(
      options,
      reactors,
      new BdevRegistry(reactors, drivers),
      vhostSettings,
      plugins.disks,
    )
    try {
      await daemon.#open()
    } catch (error) {
      await daemon.stop()
      throw error
    }
    return daemon
  }

  get rpcAddress(): string {
    return this.#server?.address ?? ''
  }

  /** Runs a method as a client would: checked, in its turn, and saved before this resolves. */
  call(method: string, params?: unknown): Promise<unknown> {
    return this.#dispatcher.call(method, params)
  }

  /** Takes no more requests, ends connections and devices in order, and then the threads. The saved state stays. */
  async stop(): Promise<void> {
    await this.#server?.close()
    const { bdevs, gateway, jobs, kept, nvme, nvmf, ownGuests, rbd, reactors, vhost, virtio } = this.context
    // A device that is just coming has to be there to be closed; one that waits for a peer may not be waited for.
    await Promise.race([kept.stop(), delay(COMING_MS, undefined, { ref: false })])
    ownGuests.leave()
    await jobs.stop()
    // Other members take over what is served here before hosts lose it.
    await gateway.stop()
    await nvmf.stop()
    // Before their bdevs go: guests would see errors, and not a pause until the daemon is back.
    await vhost.stop()
    for (const { name } of bdevs.list().reverse()) {
      if (bdevs.find(name) !== undefined) await bdevs.remove(name)
    }
    await nvme.stop()
    await virtio.stop()
    await rbd.stop()
    this.context.pools.stop()
    await reactors.stop()
    this.#releaseState()
  }

  async #open(): Promise<void> {
    const { rpcSocket, stateDirectory, waitForRpc } = this.#options
    if (stateDirectory !== undefined) {
      await makeStateDirectory(stateDirectory)
      const release = lockFile(join(stateDirectory, 'lock'))
      if (release === undefined) {
        throw new RpcError(
          'EBUSY',
          `the state directory ${stateDirectory} (--state) is in use by another daemon: stop it, or choose another`,
        )
      }
      this.#releaseState = release
      nameOwner(`${resolve(stateDirectory)} ${await stateIdentity(stateDirectory)}`)
    } else nameOwner(rpcSocket)
    // Clients may connect while the daemon comes up; what they ask is answered once it is.
    this.#server = await RpcServer.listen({
      address: rpcSocket,
      lock: lockFile,
      dispatcher: {
        respond: async (text, session) => {
          if (!waitForRpc) await this.#whenUp()
          return this.#dispatcher.respond(text, session)
        },
      },
    })
    if (!waitForRpc) await this.#initialize()
  }

  /** Makes what was saved, or else what the configuration file says. */
  async #initialize(): Promise<void> {
    const { configFile } = this.#options
    const saved = this.#statePath === undefined ? undefined : await readConfig(this.#statePath)
    const { configuration } = this.context
    if (saved !== undefined) {
      if (configFile !== undefined) {
        log.notice(
          `${this.#statePath} has the configuration; ${configFile} (-c) counts only for a new --state`,
        )
      }
      const { gateway, nvme, virtio } = this.context
      gateway.isRestoring = true
      nvme.isRestoring = true
      virtio.isRestoring = true
      await this.#inPhases(saved, (calls, replay) => configuration.restore(calls, replay))
      gateway.isRestoring = false
      nvme.isRestoring = false
      virtio.isRestoring = false
    } else if (configFile !== undefined) {
      const given = await readConfig(configFile)
      if (given === undefined) {
        throw new RpcError('ENOENT', `there is no configuration file ${configFile} (-c)`)
      }
      await this.#inPhases(given, (calls, replay) => configuration.load(calls, replay))
      await this.#save()
    }
    await createPluginDisks(this.context, this.#pluginDisks)
    if (this.#pluginDisks.length > 0) await this.#save()
    this.#rpc.state = 'runtime'
    this.#isUp = true
    this.context.kept.start()
    for (const tell of this.#waiting.splice(0)) tell()
  }

  /** Start-up methods first: they are allowed only before the others. */
  async #inPhases(
    saved: SavedConfig,
    run: (
      calls: SavedConfig,
      replay: (method: string, params?: unknown) => Promise<unknown>,
    ) => Promise<void>,
  ): Promise<void> {
    const isStartup = (name: string): boolean =>
      methods.find(method => method.name === name)?.state === 'startup'
    for (const phase of ['startup', 'runtime'] as const) {
      this.#rpc.state = phase
      const calls = saved.subsystems.map(({ subsystem, config }) => ({
        subsystem,
        config: config.filter(({ method }) => isStartup(method) === (phase === 'startup')),
      }))
      await this.context.bdevs.replaying(() =>
        run({ subsystems: calls }, (method, params) => this.#dispatcher.replay(method, params)),
      )
    }
  }

  #whenUp(): Promise<void> {
    if (this.#isUp) return Promise.resolve()
    return new Promise(resolve => this.#waiting.push(resolve))
  }

  async #save(): Promise<void> {
    // What is set before the daemon is up is saved once it is.
    if (this.#statePath === undefined || (this.#rpc.state === 'startup' && !this.#isUp)) return
    await writeConfig(this.#statePath, this.context.configuration.snapshot())
  }
}
