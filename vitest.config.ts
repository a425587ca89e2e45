import { defineConfig } from 'vitest/config'

/**
 * The parts of the suite: `unit` needs no root and no peers, `sim` runs seeds of the simulation, `integration` starts real
 * programs.
 */
export default defineConfig({
  test: {
    reporters: ['default'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/integration/**', 'test/sim/seeds-*.test.ts'],
        },
      },
      {
        test: {
          name: 'sim',
          include: ['test/sim/seeds-*.test.ts'],
          // How long it takes follows from the number of seeds, which a nightly run raises.
          testTimeout: 0,
        },
      },
      {
        test: {
          name: 'integration',
          include: ['test/integration/**/*.test.ts'],
          testTimeout: 300_000,
          hookTimeout: 300_000,
          // Real guests and daemons compete for the same few cores: more files at once only makes all of them late.
          maxWorkers: 2,
        },
      },
    ],
  },
})
