/** Tells the control thread that something about a controller's disks has changed. */
import type { Port } from '../reactor/port.ts'
import { type ScsiNews, Topic } from './messages.ts'

/** However much a back end has to tell, one message is on its way, and one more follows when there was more. */
export class News {
  readonly #control: Port
  readonly #controller: number
  #isTelling = false
  #more: string | undefined

  constructor(control: Port, controller: number) {
    this.#control = control
    this.#controller = controller
  }

  tell(what: string): void {
    if (this.#isTelling) {
      this.#more = what
      return
    }
    this.#isTelling = true
    const message: ScsiNews = { controller: this.#controller, what }
    void this.#control.call(Topic.NEWS, message).then(() => this.#told())
  }

  #told(): void {
    this.#isTelling = false
    const more = this.#more
    this.#more = undefined
    if (more !== undefined) this.tell(more)
  }
}
