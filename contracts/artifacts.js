#!/usr/bin/env node
// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Writes artifacts/*.json, the ABI and bytecode that the Rust crates embed. With --check it writes nothing and fails where a
// committed file is not what the sources compile to. Run it through npm, which puts forge on the path.

import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import solc from 'solc'

const SOURCES = {
  InferencePayment: 'src/InferencePayment.sol',
  MessageHarness: 'test/MessageHarness.sol',
  NCNToken: 'src/NCNToken.sol',
  PaymentChannel: 'src/PaymentChannel.sol',
  Slashing: 'src/Slashing.sol',
  SubnetRegistry: 'src/SubnetRegistry.sol',
  ValidatorRegistry: 'src/ValidatorRegistry.sol',
}

const project = dirname(fileURLToPath(import.meta.url))
const directory = join(project, 'artifacts')

// From scratch and away from the working build, so that nothing left over from an earlier one can get in.
function compile() {
  const scratch = mkdtempSync(join(tmpdir(), 'ncn-contracts-'))
  try {
    const options = ['--force', '--quiet', '--out', join(scratch, 'out'), '--cache-path', join(scratch, 'cache')]
    const sources = Object.values(SOURCES)
    const env = { ...process.env, FOUNDRY_PROFILE: 'artifacts' }
    execFileSync('forge', ['build', ...options, ...sources], { cwd: project, env, stdio: 'inherit' })
    return Object.fromEntries(Object.keys(SOURCES).map((name) => [name, artifact(join(scratch, 'out'), name)]))
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

function artifact(out, name) {
  const { abi, bytecode, deployedBytecode } = JSON.parse(readFileSync(join(out, `${name}.sol`, `${name}.json`), 'utf8'))
  const fields = {
    contractName: name,
    compiler: solc.version().replace(/\.Emscripten.*$/, ''),
    abi,
    bytecode: bytecode.object,
    deployedBytecode: deployedBytecode.object,
  }
  return JSON.stringify(fields, null, 2) + '\n'
}

function committed(file) {
  try {
    return readFileSync(join(directory, file), 'utf8')
  } catch {
    return undefined
  }
}

const check = process.argv.includes('--check')
mkdirSync(directory, { recursive: true })
const known = Object.keys(SOURCES).map((name) => `${name}.json`)
const wrong = readdirSync(directory)
  .filter((file) => !known.includes(file))
  .map((file) => `artifacts/${file} belongs to no contract`)

for (const [name, fresh] of Object.entries(compile())) {
  const file = `${name}.json`
  const old = committed(file)
  if (fresh === old) continue
  if (check) wrong.push(`artifacts/${file} ${old === undefined ? 'is missing' : `is not what ${SOURCES[name]} compiles to`}`)
  else writeFileSync(join(directory, file), fresh)
}

if (wrong.length > 0) {
  console.error(wrong.join('\n'))
  console.error('Run `npm run artifacts` in contracts/ and commit the result.')
  process.exit(1)
}
console.log(check ? 'artifacts are up to date' : `wrote ${known.join(', ')}`)
