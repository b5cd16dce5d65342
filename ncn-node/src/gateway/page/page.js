// Shows what the gateway says of itself, once a second. Nothing that it says becomes markup: all of it is text.

const POLL = 1000;
const DECIMALS = 18n;
const $ = (id) => document.getElementById(id);

function element(name, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const show = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

// Units of a token as tokens, with as many digits as there are, but no more than six after the point.
function tokens(units) {
  const all = BigInt(units), one = 10n ** DECIMALS;
  const part = (all % one).toString().padStart(Number(DECIMALS), '0').slice(0, 6).replace(/0+$/, '');
  const whole = (all / one).toLocaleString('en');
  if (all > 0n && all / one === 0n && part === '') return '< 0.000001';
  return part ? `${whole}.${part}` : whole;
}

function time(micros) {
  if (micros === null || micros === undefined) return '–';
  const milliseconds = micros / 1000;
  if (milliseconds < 1) return `${Math.round(micros)} µs`;
  if (milliseconds < 1000) return `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

const short = (id) => `${id.slice(0, 10)}…${id.slice(-4)}`;
const id = (text) => element('span', { class: 'id', title: text, text: short(text) });
const number = (text) => element('td', { class: 'number', text });
const inEnd = (state) => typeof state === 'object' ? state.ended : null;
const words = (state) => (inEnd(state) ?? state).replaceAll('_', ' ');

// Rows stay the same elements while their key does: what has the focus keeps it.
function rows(body, items, key, make, update) {
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const wanted = items.map((item) => {
    const row = known.get(key(item)) ?? make(item);
    row.dataset.key = key(item);
    update(row, item);
    return row;
  });
  for (const row of known.values()) if (!wanted.includes(row)) row.remove();
  wanted.forEach((row, place) => { if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null); });
}

const table = (name, items, key, cells) => rows($(name), items, key, () => element('tr'), (row, item) => row.replaceChildren(...cells(item)));

function showSteps({ steps, refunding }) {
  rows($('steps'), steps, (step) => step.name, () => element('li', {}, element('small'), element('b'), element('small')), (row, step) => {
    const [name, count, mean] = row.children;
    const place = steps.indexOf(step);
    name.textContent = `${place + 1} ${step.name}`;
    count.textContent = step.requests;
    mean.textContent = time(step.meanMicros);
    row.classList.toggle('busy', step.requests > 0 && place < 11);
  });
  show('refunding', refunding ? `${refunding} being paid back. ` : '');
}

function track(request) {
  const { step } = request, ended = inEnd(request.state);
  const made = element('span', { class: `track ${ended === 'completed' ? 'done' : ended ? 'lost' : ''}`, 'aria-hidden': 'true' });
  for (let place = 1; place <= 12; place += 1) made.append(element('i', place <= step ? { class: 'past' } : {}));
  return made;
}

function showRequests({ requests, steps }) {
  const newest = [...requests].reverse();
  const make = (request) => {
    const button = element('button', { type: 'button', class: 'id', title: request.id, text: short(request.id) });
    button.addEventListener('click', () => { location.hash = request.id; });
    return element('tr', {}, element('td', {}, button), element('td', { text: request.model }), element('td'), number(''), number(''));
  };
  rows($('requests'), newest, (request) => request.id, make, (row, request) => {
    const [, , step, age, total] = row.children;
    const isOnItsWay = !inEnd(request.state) && request.state !== 'refunding';
    const name = isOnItsWay ? steps[request.step - 1].name : words(request.state);
    if (step.dataset.shown !== `${request.step} ${name}`) {
      step.dataset.shown = `${request.step} ${name}`;
      step.replaceChildren(track(request), name);
    }
    age.textContent = time(request.ageMicros);
    total.textContent = request.total === '0' ? '–' : tokens(request.total);
  });
  $('no-requests').hidden = requests.length > 0;
}

const SVG = 'http://www.w3.org/2000/svg';
function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next round number, for the top of a plot.
function top(value) {
  const scale = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 2, 5, 10].map((step) => step * scale).find((step) => step >= value);
}

// Points that are no more seconds apart are joined.
const GAP = 5;
const WIDTH = 360, LOW = 100, HIGH = 12, LEFT = 4;
function plot(name, series, { uptime, span }, most, format, summary) {
  const x = (at) => LEFT + (WIDTH - 2 * LEFT) * (1 - (uptime - at) / span), y = (value) => LOW - (LOW - HIGH) * value / most;
  const parts = [svg('title', {}, summary)];
  for (const share of [0, 0.5, 1]) parts.push(svg('line', { class: 'grid', x1: 0, x2: WIDTH, y1: y(most * share), y2: y(most * share) }));
  parts.push(svg('text', { x: LEFT, y: y(most) - 3 }, format(most)), svg('text', { x: LEFT, y: LOW + 13 }, `${time(span * 1e6)} ago`));
  parts.push(svg('text', { x: WIDTH - LEFT, y: LOW + 13, 'text-anchor': 'end' }, 'now'));
  for (const { points, kind } of series) {
    let path = '', drawn = -Infinity;
    for (const [at, value] of points) {
      if (value === null) continue;
      path += `${at - drawn <= GAP ? 'L' : 'M'}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      drawn = at;
      parts.push(svg('circle', { class: kind, r: 1.2, cx: x(at).toFixed(1), cy: y(value).toFixed(1) }));
    }
    parts.push(svg('path', { class: kind, d: path }));
  }
  $(name).replaceChildren(...parts);
}

function showPlots(overview) {
  const { seconds, uptime, span } = overview;
  const known = new Map(seconds.map((second) => [second.at, second]));
  // The present second is not over.
  const first = Math.max(0, uptime - span), all = Array.from({ length: Math.max(0, uptime - first) }, (_, place) => first + place);
  const of = (field, otherwise) => all.map((at) => [at, known.get(at)?.[field] ?? otherwise]);
  const most = (points) => Math.max(...points.map(([, value]) => value ?? 0));
  const ordered = of('ordered', 0), completed = of('completed', 0), p50 = of('p50Micros', null), p95 = of('p95Micros', null);
  const last = (points) => points.findLast(([, value]) => value !== null)?.[1] ?? null;
  plot('throughput', [{ points: ordered, kind: 'a' }, { points: completed, kind: 'b' }], overview, top(Math.max(1, most(ordered), most(completed))), (value) => `${value} a second`, `at the end ${last(completed) ?? 0} a second are delivered, at most ${most(completed)}`);
  plot('latency', [{ points: p50, kind: 'a' }, { points: p95, kind: 'b' }], overview, top(Math.max(1000, most(p95))), time, `at the end half of the requests took less than ${time(last(p50))}, 95 of 100 less than ${time(last(p95))}`);
}

function showNetwork({ nodes, attached, models, validators }) {
  show('attached', attached > nodes.length ? `${attached}, of which ${nodes.length} are shown` : `${attached}`);
  const cell = (text) => element('td', { text });
  const address = (text) => element('td', {}, id(text));
  table('nodes', nodes, (node) => node.address, (node) => [address(node.address), cell(node.models.join(', ') || '–'), number(node.requests), cell(node.confinement ?? 'not live')]);
  const million = ({ unit, price }) => price === '0' ? '–' : `${tokens(BigInt(price) * 1000000n)} (${unit}s)`;
  table('models', models, (model) => model.digest, ({ name, price }) => [cell(name), number(tokens(price.base)), number(million(price.input)), number(million(price.output))]);
  table('validators', validators, (validator) => validator.address, ({ address: of, stake, answers }) => [
    address(of),
    number(stake === null ? '–' : tokens(stake)),
    number(answers?.approved ? time(answers.meanMicros) : '–'),
    number(answers?.asked ? `${Math.round(100 * answers.approved / answers.asked)} % of ${answers.asked}` : '–'),
  ]);
}

function showDetail(detail) {
  const pairs = element('dl');
  const pair = (name, value) => { if (value !== null && value !== undefined) pairs.append(element('dt', { text: name }), element('dd', {}, value)); };
  pair('id', detail.id);
  pair('state', words(detail.state));
  pair('model', detail.model);
  pair('client', detail.client);
  pair('compute node', detail.compute);
  pair('time', time(detail.ageMicros));
  pair('cost', detail.cost === null ? null : `${tokens(detail.cost)} tokens`);
  pair('at most', detail.total === '0' ? null : `${tokens(detail.total)} tokens`);
  pair('problem', detail.failure);
  for (const payout of detail.receipt?.payments.payouts ?? []) pair(`to ${payout.role.replaceAll('_', ' ')}`, `${tokens(payout.amount)} tokens, ${payout.address}`);
  const longest = Math.max(1, ...detail.steps.map((step) => step.tookMicros));
  const step = ({ step: name, tookMicros, actor }) => element('tr', {},
    element('td', { text: name }), number(time(tookMicros)),
    element('td', {}, bar(tookMicros / longest)), element('td', {}, id(actor)));
  const head = ['step', 'time', '', 'by'].map((text) => element('th', { scope: 'col', text }));
  head[1].className = 'number';
  const steps = element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...detail.steps.map(step)));
  const wide = element('div', { class: 'wide', tabindex: '0', role: 'region', 'aria-label': 'steps' }, steps);
  const body = [pairs, element('h3', { text: 'Steps, as the gateway has measured them' }), wide];
  if (detail.receipt) body.push(element('h3', { text: 'Receipt' }), element('pre', { tabindex: '0', text: JSON.stringify(detail.receipt, null, 2) }));
  $('detail-body').replaceChildren(...body);
}

function bar(share) {
  const made = element('span', { class: 'bar', 'aria-hidden': 'true' });
  made.style.width = `${Math.max(1, Math.round(share * 120))}px`;
  return made;
}

// What a call answers, as JSON; an error says why there is none.
async function ask(path, options = {}) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(5 * POLL), ...options });
  const said = await answer.text();
  if (answer.ok) return JSON.parse(said);
  let message = `${answer.status} ${answer.statusText}`;
  try { message = JSON.parse(said).message; } catch { /* It is no problem of the gateway's. */ }
  throw Object.assign(new Error(message), { status: answer.status });
}

const ID = /^0x[0-9a-f]{64}$/i;
let detailed = null;
async function refreshDetail() {
  const wanted = location.hash.slice(1);
  if (!wanted) return $('detail').close();
  if (!$('detail').open) $('detail').showModal();
  if (detailed === wanted) return;
  try {
    if (!ID.test(wanted)) throw new Error('This is no request id: it is 0x and 64 hexadecimal digits.');
    const said = await ask(`overview/${wanted}`);
    if (wanted !== location.hash.slice(1)) return;
    showDetail(said);
    // What has ended stays as it is.
    detailed = inEnd(said.state) && (said.receipt || inEnd(said.state) !== 'completed') ? wanted : null;
  } catch (error) {
    const forgotten = error.status === 404 ? ' Requests are forgotten a while after their end.' : '';
    $('detail-body').replaceChildren(element('p', { text: error.message + forgotten }));
  }
}

$('detail').addEventListener('close', () => { detailed = null; if (location.hash) history.replaceState(null, '', location.pathname); });
addEventListener('hashchange', () => { detailed = null; refreshDetail(); });
$('find').addEventListener('submit', (event) => { event.preventDefault(); if ($('find-id').value) location.hash = $('find-id').value.trim(); });

function showAll(overview) {
  show('subnet', overview.subnet);
  show('gateway', overview.gateway);
  show('version', overview.version);
  for (const name of ['held', 'paidOut', 'earned', 'refunded']) show(name, tokens(overview.money[name]));
  show('uptime', time(overview.uptime * 1e6));
  show('span', time(overview.span * 1e6));
  showSteps(overview);
  showRequests(overview);
  showPlots(overview);
  showNetwork(overview);
}

function say(text, kind) {
  show('link', text);
  $('link').className = kind;
}

async function poll() {
  try {
    showAll(await ask('overview'));
    say('live', 'live');
    if ($('detail').open || location.hash) await refreshDetail();
  } catch (error) {
    say(`no answer: what is shown is old (${error.message})`, 'lost');
  }
  setTimeout(poll, POLL);
}

// The form: only where the network pays for it.

const model = () => trial.models.find(({ name }) => name === $('form-model').value);
let trial = null;

function showInputs() {
  const { inputs } = model();
  $('form-inputs').replaceChildren(...inputs.map((input) => {
    const field = input.kind === 'text' ? element('textarea', { name: input.name }) : element('input', { type: 'file', name: input.name });
    if (input.sample && input.kind === 'text') field.value = input.sample.text;
    const said = input.sample && input.kind !== 'text' ? `${input.name} (a sample, where no file is chosen)` : input.name;
    return element('label', {}, said, ' ', field);
  }));
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
}

async function read(input) {
  const field = $('form').elements[input.name];
  if (input.kind === 'text') return field.value || !input.optional ? { text: field.value } : null;
  const [file] = field.files;
  if (file) return { file: { media_type: file.type || 'application/octet-stream', data: await base64(file) } };
  return input.sample ?? null;
}

async function* lines(body) {
  let rest = '';
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split('\n');
    rest = parts.pop();
    yield* parts.filter(Boolean).map((line) => JSON.parse(line));
  }
}

function value(of) {
  if (of.text !== undefined) return of.text;
  if (of.file) {
    const { media_type: kind, data } = of.file, source = `data:${kind};base64,${data}`;
    if (kind.startsWith('image/')) return element('img', { src: source, alt: 'what the model has made' });
    if (kind.startsWith('audio/')) return element('audio', { src: source, controls: '' });
    return `${kind}, ${Math.round(data.length * 3 / 4)} bytes`;
  }
  return of.tensor ? numbers(of.tensor) : JSON.stringify(of);
}

const KINDS = { f32: Float32Array, i64: BigInt64Array, i32: Int32Array, i8: Int8Array, u8: Uint8Array, bool: Uint8Array };
const MOST = 32;
// A tensor's first numbers: little-endian, as browsers' machines have them.
function numbers({ data_type: kind, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const head = `${kind} ${shape.join('×')}`;
  if (!KINDS[kind]) return head;
  const all = Array.from(new KINDS[kind](bytes.buffer), (number) => typeof number === 'number' ? Number(number.toPrecision(4)) : number);
  return `${head}: ${all.slice(0, MOST).join(' ')}${all.length > MOST ? ' …' : ''}`;
}

function showOutput(values) {
  const parts = Object.entries(values).flatMap(([name, of]) => [element('b', { text: `${name}: ` }), value(of), '\n']);
  $('form-output').replaceChildren(...parts);
}

async function run() {
  const inputs = {};
  for (const input of model().inputs) {
    const given = await read(input);
    if (given) inputs[input.name] = given;
  }
  $('form-output').replaceChildren();
  show('form-state', 'asking for a quote');
  const answer = await fetch('trial', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ model: model().name, inputs }) });
  if (!answer.ok) throw new Error(answer.headers.get('content-type') === 'application/json' ? (await answer.json()).message : answer.statusText);
  for await (const said of lines(answer.body)) {
    if (said.quoted) show('form-state', `paying at most ${tokens(said.quoted.total)} tokens`);
    if (said.paid) show('form-state', 'paid: the model runs');
    if (said.text) $('form-output').append(said.text);
    if (said.anew) $('form-output').replaceChildren();
    if (said.failed) throw new Error(said.failed);
    if (said.finished) {
      showOutput(said.finished.output);
      const link = element('a', { href: `#${said.finished.requestId}`, text: 'receipt' });
      $('form-state').replaceChildren(`cost ${tokens(said.finished.cost)} tokens: `, link);
    }
  }
}

async function offerTrial() {
  try {
    trial = await ask('trial');
  } catch (error) {
    // Where there is none, there will be none.
    if (error.status !== 404) setTimeout(offerTrial, POLL);
    return;
  }
  $('form-model').replaceChildren(...trial.models.map(({ name }) => element('option', { text: name })));
  showInputs();
  $('trial').hidden = false;
}

$('form-model').addEventListener('change', showInputs);
$('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const button = $('form').querySelector('button');
  button.disabled = true;
  try {
    await run();
  } catch (error) {
    show('form-state', error.message);
  }
  button.disabled = false;
});

poll();
offerTrial();
