// The page "Try it": everything that takes long, off the page's main thread.
//
// It computes what roadseg.inference.predict computes on a CPU: the same input size,
// the same antialiased resize in 8-bit integers, the same padding, and logits that are
// upsampled to the photo's size before the largest one is chosen.

const STRIDE = 32; // sides of the network's input: roadseg.unet.STRIDE
const STRIP = 2 ** 20; // pixels of the photo that are read at a time
const PREVIEW = 1600; // longest side of the overlay that the page shows
const CANVAS = 2 ** 24; // pixels of the largest canvas that all phones have
const { fround } = Math;

/** What went wrong, in a sentence for the reader. */
class Problem extends Error {}

// Loading -------------------------------------------------------------------------

/** Download a file, reporting its bytes as they come. */
async function download(url, report) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) {
    throw new Problem(
      "The network could not be downloaded. Check your connection, then choose the photo again."
    );
  }
  const total = Number(response.headers.get("Content-Length")) || 0;
  const parts = [];
  let loaded = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      report((loaded += value.length), Math.max(total, loaded));
    }
  } catch {
    throw new Problem("The download stopped early. Choose the photo again to repeat it.");
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Read the metadata of an ONNX file: field 14 of its protocol buffer, key and value. */
function readMetadata(bytes) {
  const text = new TextDecoder();
  function* fields(start, end) {
    let at = start;
    const varint = () => {
      let value = 0, factor = 1, byte;
      do {
        byte = bytes[at++];
        value += (byte & 127) * factor;
        factor *= 128;
      } while (byte > 127 && at < end);
      return value;
    };
    while (at < end) {
      const tag = varint();
      const size = { 0: 0, 1: 8, 5: 4 }[tag & 7] ?? varint();
      if (!(tag & 7)) varint();
      yield [tag >>> 3, at, (at += size)];
    }
  }
  const found = {};
  for (const [field, start, end] of fields(0, bytes.length)) {
    if (field !== 14) continue;
    const entry = {};
    for (const [part, from, to] of fields(start, end)) {
      entry[part] = text.decode(bytes.subarray(from, to));
    }
    found[entry[1]] = entry[2];
  }
  return found;
}

function describe(bytes) {
  try {
    const known = readMetadata(bytes);
    const labels = JSON.parse(known.labels);
    const size = JSON.parse(known.input_size).map(Number);
    const [mean, std] = [JSON.parse(known.mean), JSON.parse(known.std)];
    if (!(size[0] > 0 && size[1] > 0 && mean.length + std.length === 6)) throw new Error();
    const scored = labels.names.map((_, id) => id).filter((id) => id !== labels.ignore_index);
    return { ...labels, size, mean, std, scored };
  } catch {
    throw new Problem(
      "This file is not a network for this page. Write one with: roadseg export --web"
    );
  }
}

async function hasGpu() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

let loading = { key: null, network: null };

/** Load runtime and network, or return those that are loaded already. */
async function load(file, address, cpuOnly) {
  const gpu = !cpuOnly && (await hasGpu());
  const key = `${gpu} ${file ? `${file.name} ${file.size} ${file.lastModified}` : address}`;
  if (loading.key === key) return loading.network;
  await loading.network?.session.release();
  loading = { key: null, network: null };
  postMessage({ kind: "loading" });
  const sums = [[0, 0], [0, 0]];
  const report = (i) => (...sum) => {
    sums[i] = sum;
    postMessage({ kind: "progress", loaded: sums[0][0] + sums[1][0], total: sums[0][1] + sums[1][1] });
  };
  const bytes = file
    ? file.arrayBuffer().then((buffer) => new Uint8Array(buffer))
    : download(address, report(1));
  let network;
  try {
    network = await open(bytes, address, gpu, report(0));
  } catch (error) {
    if (!gpu || error instanceof Problem) throw error;
    network = await open(bytes, address, false, report(0));
  }
  loading = { key, network };
  return network;
}

async function open(bytes, address, gpu, report) {
  const at = (name) => new URL(name, address).href;
  const [script, wasm] = gpu
    ? ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"]
    : ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
  const [ort, binary, network] = await Promise.all([
    import(at(script)), download(at(wasm), report), bytes,
  ]);
  const about = describe(network);
  postMessage({ kind: "preparing" });
  ort.env.wasm.numThreads = 1; // more would need headers that static hosts don't send
  ort.env.wasm.wasmBinary = binary.buffer;
  const session = await ort.InferenceSession.create(network, {
    executionProviders: [gpu ? "webgpu" : "wasm"],
    // convert the 8-bit kernels once, when the network is loaded
    extra: { session: { disable_quant_qdq: "1" } },
  });
  return { ort, session, about, runtime: gpu ? "WebGPU" : "WebAssembly" };
}

// From photo to input -------------------------------------------------------------

/** The height and width that a network gets: roadseg.inference.input_size_for. */
function inputSize([height, width], [tall, wide]) {
  const own = width / height;
  const ratio = own / (wide / tall);
  if (ratio > 0.9 && ratio < 1.1) return [tall, wide];
  const area = tall * wide;
  const longest = Math.floor(Math.max(area, 2 ** 20) / STRIDE);
  const round = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
  return [Math.sqrt(area / own), Math.sqrt(area * own)].map((side) =>
    Math.min(Math.max(1, round(side)), longest)
  );
}

/** Positions and weights of an antialiased resize along one side, as in PyTorch. */
function taps(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const count = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(to), lengths = new Int32Array(to);
  const exact = new Float64Array(to * count);
  let most = 0;
  for (let i = 0; i < to; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const length = Math.min(Math.min(Math.trunc(center + support + 0.5), from) - start, count);
    let sum = 0;
    for (let j = 0; j < length; j++) {
      const x = Math.abs((j + start - center + 0.5) * (1 / support));
      sum += exact[i * count + j] = x < 1 ? 1 - x : 0;
    }
    for (let j = 0; j < length; j++) most = Math.max(most, (exact[i * count + j] /= sum));
    [starts[i], lengths[i]] = [start, length];
  }
  let bits = 0; // of the fraction, so many that the weights fit into 16 bits
  while (bits < 22 && Math.trunc(0.5 + most * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const weights = Int32Array.from(exact, (w) => Math.trunc(0.5 + w * 2 ** bits));
  return { count, starts, lengths, weights, bits };
}

/** Resize one line of bytes; `step` is the distance between neighbors in it. */
function resizeLine(table, values, start, step, out, outStart, outStep) {
  const { count, starts, lengths, weights, bits } = table;
  for (let i = 0; i < starts.length; i++) {
    let sum = 1 << (bits - 1);
    let at = start + starts[i] * step;
    for (let j = i * count, end = j + lengths[i]; j < end; j++, at += step) {
      sum += values[at] * weights[j];
    }
    out[outStart + i * outStep] = sum >> bits;
  }
}

/** Return a photo at the input size, three planes of bytes. */
function shrink(bitmap, [tall, wide]) {
  const { height, width } = bitmap;
  const [across, down] = [taps(width, wide), taps(height, tall)];
  const narrow = new Uint8ClampedArray(3 * height * wide);
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, count);
    for (let y = 0; y < count; y++) {
      for (let c = 0; c < 3; c++) {
        const target = (c * height + top + y) * wide;
        resizeLine(across, data, y * width * 4 + c, 4, narrow, target, 1);
      }
    }
  }
  const small = new Uint8ClampedArray(3 * tall * wide);
  for (let c = 0; c < 3; c++) {
    for (let x = 0; x < wide; x++) {
      resizeLine(down, narrow, c * height * wide + x, wide, small, c * tall * wide + x, wide);
    }
  }
  return small;
}

/** Normalize three planes of bytes, and repeat their edges up to multiples of 32. */
function normalize(small, [tall, wide], { mean, std }) {
  const [padTall, padWide] = [tall, wide].map((side) => Math.ceil(side / STRIDE) * STRIDE);
  const input = new Float32Array(3 * padTall * padWide);
  for (let c = 0, at = 0; c < 3; c++) {
    const value = Float32Array.from({ length: 256 }, (_, byte) =>
      fround(fround(fround(byte * fround(1 / 255)) - fround(mean[c])) / fround(std[c]))
    );
    for (let y = 0; y < padTall; y++) {
      const row = (c * tall + Math.min(y, tall - 1)) * wide;
      for (let x = 0; x < padWide; x++) input[at++] = value[small[row + Math.min(x, wide - 1)]];
    }
  }
  return { input, dims: [1, 3, padTall, padWide] };
}

// From logits to mask -------------------------------------------------------------

/** Upsample logits to the photo's size, row by row, and choose the largest. */
function chooseClasses(logits, [, , padTall, padWide], [tall, wide], [height, width], scored) {
  const mask = new Uint8Array(height * width);
  const counts = new Float64Array(256);
  const low = new Int32Array(width), high = new Int32Array(width);
  const left = new Float32Array(width), right = new Float32Array(width);
  const scale = fround(wide / width);
  for (let x = 0; x < width; x++) {
    const at = Math.max(0, fround(fround(scale * (x + 0.5)) - 0.5));
    low[x] = Math.min(Math.trunc(at), wide - 1);
    high[x] = Math.min(low[x] + 1, wide - 1);
    right[x] = at - low[x];
    left[x] = 1 - right[x];
  }
  const row = new Float32Array(wide), best = new Float32Array(width);
  for (let y = 0; y < height; y++) {
    const at = Math.min(Math.max(((y + 0.5) * tall) / height - 0.5, 0), tall - 1);
    const top = Math.floor(at), bottom = Math.min(top + 1, tall - 1);
    const weight = fround(at - top);
    const ids = mask.subarray(y * width, (y + 1) * width);
    best.fill(-Infinity);
    for (const id of scored) {
      const upper = (id * padTall + top) * padWide, lower = (id * padTall + bottom) * padWide;
      for (let x = 0; x < wide; x++) {
        row[x] = logits[upper + x] + weight * (logits[lower + x] - logits[upper + x]);
      }
      for (let x = 0; x < width; x++) {
        const value = fround(left[x] * row[low[x]] + right[x] * row[high[x]]);
        if (value > best[x]) {
          best[x] = value;
          ids[x] = id;
        }
      }
    }
    for (let x = 0; x < width; x++) counts[ids[x]]++;
  }
  return { mask, counts };
}

/** Color a mask, at most `limit` on its longest side. */
function paint({ mask, height, width, colors }, limit, alpha = 255) {
  const shrinkBy = Math.max(1, Math.max(height, width) / limit);
  const [tall, wide] = [height, width].map((side) => Math.max(1, Math.round(side / shrinkBy)));
  const image = new ImageData(wide, tall);
  const values = new Uint32Array(image.data.buffer);
  const paints = Uint32Array.from(colors, ([r, g, b]) => (alpha << 24) | (b << 16) | (g << 8) | r);
  for (let y = 0, at = 0; y < tall; y++) {
    const row = Math.floor(((y + 0.5) * height) / tall) * width;
    for (let x = 0; x < wide; x++) {
      values[at++] = paints[mask[row + Math.floor(((x + 0.5) * width) / wide)]];
    }
  }
  return image;
}

// Files ---------------------------------------------------------------------------

const CRCS = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function chunk(name, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(content, 8);
  let crc = ~0;
  for (let i = 4; i < bytes.length - 4; i++) crc = (crc >>> 8) ^ CRCS[(crc ^ bytes[i]) & 255];
  view.setUint32(bytes.length - 4, ~crc);
  return bytes;
}

/** Write a mask as a PNG of ids with the classes' colors: as `roadseg predict` does. */
async function encodeMask({ mask, height, width, colors }) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0803); // 8 bits per pixel, which are indices into a palette
  const palette = new Uint8Array(768);
  palette.set(colors.flat());
  const rows = new Uint8Array(height * (width + 1)); // each begins with its filter, 0
  for (let y = 0; y < height; y++) {
    rows.set(mask.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  }
  const zlib = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const content = new Uint8Array(await new Response(zlib).arrayBuffer());
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  const chunks = [
    chunk("IHDR", new Uint8Array(header.buffer)),
    chunk("PLTE", palette),
    chunk("IDAT", content),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob([signature, ...chunks], { type: "image/png" });
}

/** Write the photo under the mask's colors; smaller if a canvas can't be that large. */
async function encodeOverlay(photo, result, opacity) {
  const bitmap = await decode(photo);
  const factor = Math.min(1, Math.sqrt(CANVAS / (bitmap.width * bitmap.height)));
  const [wide, tall] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * factor)));
  const canvas = new OffscreenCanvas(wide, tall);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, wide, tall);
  bitmap.close();
  const colors = await createImageBitmap(paint(result, Math.max(wide, tall)));
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(colors, 0, 0, wide, tall);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

// What the page asks for ----------------------------------------------------------

async function decode(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none" }); // upright
  } catch {
    throw new Problem(`Your browser can't read ${file.name} as an image. Use a JPEG, PNG, or WebP file.`);
  }
}

let last = null; // the photo and its mask, for the overlay

async function segment({ photo, file, address, cpuOnly }) {
  const bitmap = await decode(photo);
  const { height, width } = bitmap;
  const network = await load(file, address, cpuOnly);
  const { ort, session, about } = network;
  postMessage({ kind: "segmenting", runtime: network.runtime });
  const start = performance.now();
  const size = inputSize([height, width], about.size);
  const small = shrink(bitmap, size);
  bitmap.close();
  const { input, dims } = normalize(small, size, about);
  const tensor = new ort.Tensor("float32", input, dims);
  let logits;
  try {
    [logits] = Object.values(await session.run({ [session.inputNames[0]]: tensor }));
  } catch (error) {
    if (cpuOnly || network.runtime !== "WebGPU") throw error;
    return segment({ photo, file, address, cpuOnly: true });
  }
  if (String(logits.dims) !== String([1, about.names.length, dims[2], dims[3]])) {
    throw new Problem("The network's output doesn't fit its classes or its input size.");
  }
  const { mask, counts } = chooseClasses(
    await logits.getData(), logits.dims, size, [height, width], about.scored
  );
  logits.dispose();
  const seconds = (performance.now() - start) / 1000;
  last = { photo, mask, height, width, colors: about.colors };
  const classes = about.names
    .map((name, id) => ({ name, color: about.colors[id], share: counts[id] / mask.length }))
    .filter(({ share }) => share > 0)
    .sort((a, b) => b.share - a.share);
  return {
    kind: "result", classes, seconds, size, height, width, runtime: network.runtime,
    overlay: paint(last, PREVIEW), maskFile: await encodeMask(last),
  };
}

let busy = Promise.resolve(); // one thing at a time

onmessage = ({ data }) => {
  busy = busy.then(async () => {
    try {
      const answer = data.kind === "segment"
        ? await segment(data)
        : { kind: "overlay", blob: await encodeOverlay(last.photo, last, data.opacity) };
      postMessage({ ...answer, id: data.id });
    } catch (error) {
      const text = error instanceof Problem
        ? error.message
        : `Something went wrong (${String(error?.message ?? error).slice(0, 200)}). Your device may be short of memory: reload the page, or use a smaller photo.`;
      postMessage({ kind: "problem", text, id: data.id });
    }
  });
};
