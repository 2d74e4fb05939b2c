// Browsers start no workers for pages opened from a disk, so there the search runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.loaded = new Promise(done => {
        frame.onload = () => {
          this.inside = frame.contentWindow;
          this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = this.inside.document.createElement("script");
          script.src = url;
          script.onload = done;
          this.inside.document.head.append(script);
        };
      });
      document.body.append(frame);
    }

    async postMessage(data) {
      await this.loaded;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
