import { homedir } from 'node:os'
import { join } from 'node:path'

/**
 * Where results that can be made again are kept: the folder that TRAIN_CORE_CACHE names, or `train-core` in the user's
 * cache folder (XDG_CACHE_HOME or ~/.cache; ~/Library/Caches on macOS).
 */
export function cacheFolder(): string {
  if (process.env.TRAIN_CORE_CACHE) return process.env.TRAIN_CORE_CACHE
  if (process.env.XDG_CACHE_HOME) return join(process.env.XDG_CACHE_HOME, 'train-core')
  return process.platform === 'darwin'
    ? join(homedir(), 'Library', 'Caches', 'train-core')
    : join(homedir(), '.cache', 'train-core')
}
