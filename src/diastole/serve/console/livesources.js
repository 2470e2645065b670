// Signals for live streams: files, the microphone, and one that is made up and says so.

const PIECE = 0.1; // seconds

/** Gives pieces of samples at their own pace. x: Float32Array, all channels of one sample after the other. */
function paced(x, rate, channels, name) {
  const size = Math.max(Math.round(PIECE * rate), 1) * channels.length;
  let timer = null;
  return {
    rate,
    channels,
    name,
    start(onpiece, onend) {
      const began = performance.now();
      let at = 0;
      timer = setInterval(() => {
        // What is due by now: timers of a page that is not seen come rarely.
        const due = Math.min(Math.floor(((performance.now() - began) / 1000) * rate) * channels.length, x.length);
        while (at + size <= due || (due === x.length && at < due)) {
          onpiece(x.slice(at, Math.min(at + size, x.length)));
          at = Math.min(at + size, x.length);
        }
        if (at >= x.length) {
          clearInterval(timer);
          onend();
        }
      }, 1000 * PIECE);
    },
    stop() {
      clearInterval(timer);
    },
  };
}

/** A sound file, or a table of numbers with a channel in each column. */
export async function fromFile(file, model) {
  if (model.quantity === "sound pressure") {
    const context = new OfflineAudioContext(1, 1, model.rate);
    let audio;
    try {
      audio = await context.decodeAudioData(await file.arrayBuffer());
    } catch {
      throw new Error(`${file.name} cannot be read as sound.`);
    }
    const mono = new Float32Array(audio.length);
    for (let c = 0; c < audio.numberOfChannels; c++) {
      audio.getChannelData(c).forEach((v, i) => (mono[i] += v / audio.numberOfChannels));
    }
    return paced(mono, audio.sampleRate, model.channels, file.name);
  }
  const rows = (await file.text()).trim().split(/\r?\n/).map((line) => line.split(/[,;\s]+/).map(Number));
  if (rows.length && rows[0].some(Number.isNaN)) rows.shift(); // names of columns
  const wide = model.channels.length;
  if (!rows.length || rows.some((row) => row.length !== wide || row.some(Number.isNaN))) {
    throw new Error(`${file.name} must hold ${wide} numbers in each line: ${model.channels.join(", ")}.`);
  }
  return paced(Float32Array.from(rows.flat()), model.rate, model.channels, file.name);
}

export async function fromMicrophone() {
  if (!navigator.mediaDevices) throw new Error("Browsers give the microphone to pages from localhost or over TLS only.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch {
    throw new Error("The microphone was not given.");
  }
  const context = new AudioContext({ sampleRate: 16000 });
  await context.audioWorklet.addModule("console/liveworklet.js");
  const node = new AudioWorkletNode(context, "pieces");
  return {
    rate: context.sampleRate,
    channels: ["mono"],
    name: "microphone",
    start(onpiece) {
      node.port.onmessage = ({ data }) => onpiece(data);
      context.createMediaStreamSource(stream).connect(node);
    },
    stop() {
      for (const track of stream.getTracks()) track.stop();
      context.close().catch(() => {});
    },
  };
}

/** Thirty seconds of noise with bursts in it: to see that something goes on, and nothing to conclude from. */
export function testSignal(model) {
  const { rate, channels } = model;
  const n = Math.round(30 * rate);
  const x = new Float32Array(n * channels.length);
  let state = 1;
  const random = () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return state / 1073741824 - 1;
  };
  for (let i = 0; i < n; i++) {
    const t = i / rate;
    const since = (t + 2) % 8; // a burst every eight seconds, and a stronger one three seconds later
    const burst = Math.exp(-since * 1.5) * 12 + (since > 3 ? Math.exp(-(since - 3) * 0.8) * 30 : 0);
    for (let c = 0; c < channels.length; c++) {
      x[i * channels.length + c] = 0.02 * (random() + burst * Math.sin(2 * Math.PI * (5 + c) * t) * random());
    }
  }
  return paced(x, rate, channels, "made-up signal");
}
