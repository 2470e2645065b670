// On the audio thread: samples of the microphone, in pieces of 40 ms.
const SIZE = 640;

class Pieces extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(SIZE);
    this.filled = 0;
  }

  process([[samples]]) {
    for (const v of samples ?? []) {
      this.piece[this.filled++] = v;
      if (this.filled === SIZE) {
        this.port.postMessage(this.piece.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pieces", Pieces);
