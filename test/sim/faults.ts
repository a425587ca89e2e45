/** Everything that goes wrong, when, and for how long: decided by the seed before the run begins. */
import type { Prng } from '../../src/core/prng.ts'
import { CLIENT_ADDRESS, choosePolicy } from './config.ts'
import type { AnaName, Gateway } from './gateway.ts'
import { GOOD_LINK, type LinkQuality } from './link.ts'
import type { Scenario } from './scenario.ts'

export interface Fault {
  readonly text: string
  /** I/O takes longer, and nothing is broken. */
  readonly isSlow?: true
  readonly atUs: number
  readonly forUs: number
  begin(): void
  end(): void
}

type Effect = Omit<Fault, 'atUs' | 'forUs'> & {
  /** Two faults of one thing are not there at the same time. */
  readonly of: string
}

const SECOND = 1_000_000
const SLOW_LINKS: readonly LinkQuality[] = [
  { delayUs: [20_000, 80_000], bytesPerUs: 1 },
  { delayUs: [50, 300_000], bytesPerUs: 1000 },
  { delayUs: [20, 200], bytesPerUs: 0.05 },
]
const ANA_NAMES: readonly AnaName[] = ['optimized', 'non_optimized', 'inaccessible']

/** The schedule of a run, in the order of the beginnings. */
export function chooseFaults(scenario: Scenario, prng: Prng): Fault[] {
  const { faults, faultyUs } = scenario.config
  const chosen: (Fault & { readonly of: string })[] = []
  for (let i = 0; i < faults; i++) {
    const effect = prng.pick(EFFECTS)(scenario, prng)
    const atUs = prng.below(faultyUs)
    const forUs = Math.round(prng.pick([0.05, 0.5, 2, 8, 20]) * SECOND * (0.5 + prng.below(1000) / 1000))
    const isTaken = chosen.some(
      other => other.of === effect.of && atUs < other.atUs + other.forUs && other.atUs < atUs + forUs,
    )
    if (!isTaken) chosen.push({ ...effect, atUs, forUs })
  }
  return chosen.sort((a, b) => a.atUs - b.atUs)
}

const EFFECTS: readonly ((scenario: Scenario, prng: Prng) => Effect)[] = [
  cutLink,
  cutLink,
  cutLink,
  slowLink,
  crash,
  crash,
  stopListening,
  changeAna,
  changeAna,
  resize,
  resetPath,
  resetPath,
  detachPath,
  slowDisk,
  pause,
  sever,
  sever,
  sever,
  disablePath,
  changePolicy,
  crashClient,
]

/** A path's bytes are silently lost, in one direction or in both. */
function cutLink({ world, paths }: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(paths)
  const directions = prng.pick([['out'], ['back'], ['out', 'back']])
  const links = directions.map(direction =>
    direction === 'out'
      ? world.internet.link(CLIENT_ADDRESS, host)
      : world.internet.link(host, CLIENT_ADDRESS),
  )
  return {
    of: `link ${host}`,
    text: `the link to ${host} is cut (${directions.join(', ')})`,
    begin: () => {
      for (const link of links) link.cut()
    },
    end: () => {
      for (const link of links) link.heal()
    },
  }
}

function slowLink({ world, paths }: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(paths)
  const links = [world.internet.link(CLIENT_ADDRESS, host), world.internet.link(host, CLIENT_ADDRESS)]
  const quality = prng.pick(SLOW_LINKS)
  const set = (value: LinkQuality) => () => {
    for (const link of links) link.quality = value
  }
  return {
    of: `quality ${host}`,
    isSlow: true,
    text: `the link to ${host} is slow (${quality.delayUs.join(' to ')} µs, ${quality.bytesPerUs} bytes/µs)`,
    begin: set(quality),
    end: set(GOOD_LINK),
  }
}

function crash({ gateways, background }: Scenario, prng: Prng): Effect {
  const gateway = prng.pick(gateways)
  const kind = prng.pick(['program', 'power'] as const)
  return {
    of: `life of ${gateway.name}`,
    text: `${gateway.name} crashes (${kind})`,
    begin: () => gateway.crash(kind),
    end: () => background(`start of ${gateway.name}`, gateway.start()),
  }
}

function stopListening({ paths, background }: Scenario, prng: Prng): Effect {
  const { gateway, host } = prng.pick(paths)
  const set = (isListening: boolean) => () => {
    gateway.wishes.get(host)!.isListening = isListening
    background(`listener ${host}`, gateway.reconcile())
  }
  return { of: `listener ${host}`, text: `nobody listens at ${host}`, begin: set(false), end: set(true) }
}

function changeAna({ paths, background, config }: Scenario, prng: Prng): Effect {
  const { gateway, host } = prng.pick(paths)
  const [during, after] = [prng.pick(ANA_NAMES), prng.pick(ANA_NAMES)]
  const set = (ana: AnaName) => () => {
    if (!config.anaReporting) return
    gateway.wishes.get(host)!.ana = ana
    background(`ANA state of ${host}`, gateway.reconcile())
  }
  return {
    of: `ana ${host}`,
    text: `${host} is ${during}, then ${after}`,
    begin: set(during),
    end: set(after),
  }
}

function resize(scenario: Scenario, prng: Prng): Effect {
  const more = prng.between(1, 20)
  return {
    of: 'size',
    text: `the disk grows by ${more} blocks`,
    begin: () => scenario.grow(more),
    end: () => {},
  }
}

function resetPath({ paths, client, background }: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(paths)
  return {
    of: `operator ${host}`,
    text: `the operator resets the path to ${host}`,
    begin: () => {
      const cntlid = client.cntlid(host)
      // A path that is down cannot be reached at once, and the operator hears so.
      if (cntlid !== undefined) {
        background(`reset of ${host}`, client.command('reset', cntlid), ['EIO', 'ENODEV', 'EALREADY'])
      }
    },
    end: () => {},
  }
}

/** Taken away and added again; never the last one. */
function detachPath(scenario: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(scenario.paths)
  return {
    of: 'paths',
    text: `the path to ${host} is detached`,
    begin: () => scenario.detach(host),
    end: () => scenario.attachAgain(host),
  }
}

function slowDisk({ disk }: Scenario, prng: Prng): Effect {
  const latencyUs = prng.pick([
    [5_000, 50_000],
    [100, 2_000_000],
  ] as const)
  const good = disk.latencyUs
  return {
    of: 'disk',
    isSlow: true,
    text: `the disk takes ${latencyUs.join(' to ')} µs`,
    begin: () => {
      disk.latencyUs = latencyUs
    },
    end: () => {
      disk.latencyUs = good
    },
  }
}

/** A reactor gets no processor. */
function pause({ world, gateways, client }: Scenario, prng: Prng): Effect {
  const victim: Gateway | typeof client = prng.pick([...gateways, client])
  const name = victim.node.name
  const turn = prng.below(2)
  const forUs = prng.pick([0.02, 0.5, 3]) * SECOND
  return {
    of: `processor of ${name}`,
    isSlow: true,
    text: `a reactor of ${name} stands still for ${forUs / SECOND} s`,
    begin: () => {
      const reactors = victim.node.running?.reactors ?? []
      const reactor = reactors[turn % Math.max(1, reactors.length)]
      if (reactor !== undefined) world.clock.pause(reactor, forUs)
    },
    end: () => {},
  }
}

/** Something between client and gateway resets a connection: the admin queue's, or an I/O queue's. */
function sever({ paths, client }: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(paths)
  return {
    of: 'connections',
    text: `a connection to ${host} is reset`,
    begin: () => client.node.machine.severOne(host, prng),
    end: () => {},
  }
}

function disablePath(scenario: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(scenario.paths)
  return {
    of: 'paths',
    text: `the path to ${host} is disabled`,
    begin: () => scenario.disable(host),
    end: () => scenario.enable(host),
  }
}

function changePolicy({ paths, client, background }: Scenario, prng: Prng): Effect {
  const { host } = prng.pick(paths)
  const policy = choosePolicy(prng)
  return {
    of: 'policy',
    text: `the policy is ${JSON.stringify(policy)}, then ${host} is preferred`,
    begin: () => {
      if (client.isUp) background('the policy', client.setPolicy(policy), ['ENODEV'])
    },
    end: () => {
      const cntlid = client.cntlid(host)
      if (cntlid !== undefined) background('the preferred path', client.prefer(cntlid), ['ENODEV'])
    },
  }
}

function crashClient(scenario: Scenario, prng: Prng): Effect {
  const kind = prng.pick(['program', 'power'] as const)
  return {
    of: 'life of the client',
    text: `the client crashes (${kind})`,
    begin: () => scenario.crashClient(kind),
    end: () => scenario.startClient(),
  }
}
