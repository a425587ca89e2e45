import { defineConfig } from 'vitest/config'

/** What a test waits for comes when it comes: this, too, is only against a hang. vitest's own patience is a second. */
const PATIENT = { poll: { timeout: 30_000 } }

/**
 * The parts of the suite: `unit` needs no root and no peers, `sim` runs seeds of the simulation, `integration` starts real
 * programs. One after the other, the quickest first.
 */
export default defineConfig({
  test: {
    reporters: ['default'],
    projects: [
      {
        test: {
          name: 'unit',
          sequence: { groupOrder: 0 },
          // Only against a hang: a busy machine may be many times slower than a quiet one.
          testTimeout: 180_000,
          hookTimeout: 180_000,
          expect: PATIENT,
          include: ['test/**/*.test.ts'],
          exclude: ['test/integration/**', 'test/sim/seeds-*.test.ts'],
          // Computes, and nothing runs beside it; vitest would leave a core to itself.
          maxWorkers: 4,
        },
      },
      {
        test: {
          name: 'sim',
          sequence: { groupOrder: 1 },
          include: ['test/sim/seeds-*.test.ts'],
          // How long it takes follows from the number of seeds, which a nightly run raises.
          testTimeout: 0,
          // The parts take equally long, and nothing runs beside them either.
          maxWorkers: 4,
        },
      },
      {
        test: {
          name: 'integration',
          sequence: { groupOrder: 2 },
          include: ['test/integration/**/*.test.ts'],
          // Only against a hang: ten kills under load took 207 s on a machine with twelve times the work.
          testTimeout: 600_000,
          hookTimeout: 600_000,
          expect: PATIENT,
          // A file waits more than it works: for clusters, for a guest's start, for what it has broken to be noticed. Measured,
          // most take less than one core of a CI machine's four.
          maxWorkers: 3,
        },
      },
    ],
  },
})
