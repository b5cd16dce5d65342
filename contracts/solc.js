#!/usr/bin/env node
// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The command line of a native solc, as far as forge uses it, over the compiler from npm. The compiler is thereby pinned by
// package-lock.json like every other dependency, and forge never downloads one.

import { readFileSync, realpathSync } from 'node:fs'
import { isAbsolute, relative, resolve } from 'node:path'
import solc from 'solc'

const options = process.argv.slice(2)

if (options.includes('--version')) {
  // The line forge parses: "Version: 0.8.37+commit.<hash>.<platform>".
  console.log('solc, the solidity compiler commandline interface')
  console.log(`Version: ${solc.version()}`)
} else if (options.includes('--standard-json')) {
  const at = options.indexOf('--base-path')
  const base = realpathSync(at < 0 ? '.' : options[at + 1])
  const output = solc.compile(readFileSync(0, 'utf8'), { import: (path) => read(base, path) })
  process.stdout.write(output)
} else {
  console.error(`solc.js: unsupported command line: ${options.join(' ')}`)
  process.exit(1)
}

// forge sends every source along, so this is only asked for what does not exist; it still refuses to leave the project.
function read(base, path) {
  const file = resolve(base, path)
  const inside = relative(base, file)
  if (inside.startsWith('..') || isAbsolute(inside)) return { error: `${path} is outside the project` }
  try {
    return { contents: readFileSync(file, 'utf8') }
  } catch (error) {
    return { error: error.message }
  }
}
