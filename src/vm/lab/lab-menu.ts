/** What the multipath lab lets break: one key each, behind Ctrl-]. */
import type { GatewayPair } from './gateway-pair.ts'
import type { LabMachine } from './lab-machine.ts'

export interface LabMenuParts {
  readonly gateways: GatewayPair
  readonly machine: LabMachine
  /** Types into the guest's shell. */
  readonly type: (text: string) => void
  readonly say: (text: string) => void
  readonly end: () => void
}

const LOAD_SECONDS = 20

interface Choice {
  readonly key: string
  readonly text: string
  readonly act: () => Promise<void> | void
}

export class LabMenu {
  readonly #parts: LabMenuParts
  readonly #isCut = [false, false]

  constructor(parts: LabMenuParts) {
    this.#parts = parts
  }

  show(): void {
    const lines = this.#choices().map(({ key, text }) => `  ${key}  ${text}`)
    this.#parts.say(['', 'The lab:', ...lines, '  any other key: back to the shell'].join('\n'))
  }

  /** What cannot be done is told, and the lab goes on. */
  async choose(key: string): Promise<void> {
    try {
      await this.#choices()
        .find(choice => choice.key === key)
        ?.act()
    } catch (error) {
      this.#parts.say((error as Error).message)
    }
  }

  #choices(): Choice[] {
    const { type, end } = this.#parts
    return [
      this.#gatewayChoice('1', 0),
      this.#gatewayChoice('2', 1),
      this.#networkChoice('3', 0),
      this.#networkChoice('4', 1),
      { key: 'p', text: 'show the paths', act: () => type('paths\n') },
      {
        key: 'i',
        text: `I/O for ${LOAD_SECONDS} s, each block read back and compared`,
        act: () => type(`load ${LOAD_SECONDS} &\n`),
      },
      { key: 'q', text: 'end the lab', act: end },
    ]
  }

  #gatewayChoice(key: string, index: number): Choice {
    const { gateways, say } = this.#parts
    const name = gateways.name(index)
    if (!gateways.isRunning(index)) {
      return {
        key,
        text: `start gateway ${name} again`,
        act: async () => {
          await gateways.start(index)
          say(`Gateway ${name} serves again.`)
        },
      }
    }
    return {
      key,
      text: `kill gateway ${name} (SIGKILL)`,
      act: async () => {
        await gateways.kill(index)
        say(`Gateway ${name} is dead.`)
      },
    }
  }

  #networkChoice(key: string, index: number): Choice {
    const { gateways, machine, say } = this.#parts
    const name = gateways.name(index)
    const isCut = this.#isCut[index]!
    return {
      key,
      text: isCut
        ? `mend the network to gateway ${name}`
        : `cut the network to gateway ${name}: packets vanish`,
      act: async () => {
        await machine.setLink(index, isCut)
        this.#isCut[index] = !isCut
        say(`The network to gateway ${name} is ${isCut ? 'mended' : 'cut'}.`)
      },
    }
  }
}
