/**
 * What a message about a path that is not there goes on with when the path is relative, since it begins elsewhere than whoever
 * typed it may think. Empty for absolute ones.
 */
export const whereItBegins = (path: string): string =>
  path.startsWith('/')
    ? ''
    : `; it begins in ${process.cwd()}, where the daemon runs, and ./${path} where you are`
