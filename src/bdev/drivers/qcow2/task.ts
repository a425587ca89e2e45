/**
 * What takes several steps (loading a table, copying clusters) as coroutines: ordinary code that yields where it waits.
 * Everything runs on one thread, in the order in which it is woken, so between two yields nothing else happens. The fast
 * path, reads and writes by tables that are in memory, uses none of this.
 *
 *   start(steps) --> runs until it yields --> file operations end, or somebody wakes it --> runs on … --> its end
 */
import { assert } from '../../../core/assert.ts'
import { SysError } from '../../../core/errors.ts'

/**
 * Yields to wait: for every operation that was started with `task.one`, or, after `WaitList.add`, to be woken. What a
 * `yield` for operations returns is 0 or the first -errno of theirs.
 */
export type Steps<T = void> = Generator<undefined, T, number>

/** Hears of the end of one file operation: 0 or -errno. Never called inside the call that started it. */
export interface FileWaiter {
  fileDone(result: number): void
}

/** Runs coroutines. */
export class Scheduler {
  readonly #free: Task[] = []
  #ready: Task[] = []
  #running: Task[] = []
  #isRunning = false
  /** Tasks that have not come to their end. */
  active = 0

  /** Begins at once, or when what runs at the moment waits. `steps` is given the task to wait with. */
  start(steps: (task: Task) => Steps): void {
    const task = this.#free.pop() ?? new Task(this)
    this.active++
    task.begin(steps(task))
    this.wake(task)
  }

  wake(task: Task): void {
    this.#ready.push(task)
    if (!this.#isRunning) this.#run()
  }

  #run(): void {
    this.#isRunning = true
    while (this.#ready.length > 0) {
      const tasks = this.#ready
      this.#ready = this.#running
      for (let i = 0; i < tasks.length; i++) {
        const task = tasks[i]!
        if (!task.resume()) continue
        this.active--
        this.#free.push(task)
      }
      tasks.length = 0
      this.#running = tasks
    }
    this.#isRunning = false
  }
}

export class Task implements FileWaiter {
  readonly #scheduler: Scheduler
  #steps: Steps | null = null
  #pending = 0
  #result = 0
  #isParked = false

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler
  }

  begin(steps: Steps): void {
    this.#steps = steps
    this.#pending = 0
    this.#result = 0
  }

  /** To be handed to a file operation: one more that the next `yield` waits for. */
  get one(): this {
    this.#pending++
    return this
  }

  get pending(): number {
    return this.#pending
  }

  /** The first -errno of operations that ended while the task waited for something else; forgotten afterwards. */
  takeResult(): number {
    const result = this.#result
    this.#result = 0
    return result
  }

  /** Until `unpark` the end of operations does not wake it. The caller yields next. */
  park(): void {
    this.#isParked = true
  }

  unpark(): void {
    this.#scheduler.wake(this)
  }

  fileDone(result: number): void {
    if (result < 0 && this.#result === 0) this.#result = result
    if (--this.#pending === 0 && !this.#isParked) this.#scheduler.wake(this)
  }

  /** True at the end. For the scheduler only. */
  resume(): boolean {
    const steps = this.#steps
    assert(steps !== null, 'a task that is woken has not ended')
    // What was woken for another reason than the end of its operations hears of their results when it waits for them.
    const result = this.#isParked ? 0 : this.takeResult()
    this.#isParked = false
    if (!steps.next(result).done) return false
    this.#steps = null
    return true
  }
}

/** Tasks that wait for something to change, and look again when it may have. */
export class WaitList {
  #waiting: Task[] = []

  /** The caller yields next. */
  add(task: Task): void {
    task.park()
    this.#waiting.push(task)
  }

  wakeAll(): void {
    if (this.#waiting.length === 0) return
    const waiting = this.#waiting
    this.#waiting = []
    for (const task of waiting) task.unpark()
  }
}

/** Held by one task at a time. */
export class Mutex {
  readonly #waiting = new WaitList()
  #isHeld = false

  get isHeld(): boolean {
    return this.#isHeld
  }

  *acquire(task: Task): Steps {
    while (this.#isHeld) {
      this.#waiting.add(task)
      yield
    }
    this.#isHeld = true
  }

  release(): void {
    assert(this.#isHeld, 'what is released is held')
    this.#isHeld = false
    this.#waiting.wakeAll()
  }
}

/** Waits for everything that the task has outstanding. Throws `SysError`, which says that `call` failed. */
export function* join(task: Task, call = 'write'): Steps {
  const result = task.pending === 0 ? task.takeResult() : yield
  if (result < 0) throw new SysError(call, -result, 'of an image')
}

/** Waits likewise where another error is already on its way: nothing may be outstanding when its memory is given back. */
export function* settle(task: Task): Steps {
  if (task.pending > 0) yield
  task.takeResult()
}
