// In a page that is opened from a folder, browsers start no workers, and the search would find nothing. There, a hidden
// frame stands in for the search's worker: it runs the worker's script, and messages go to and fro as to a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.started = new Promise((done) => {
        const script = this.inside.document.createElement("script");
        script.onload = done;
        script.src = new URL(url, location.href);
        this.inside.document.documentElement.append(script);
      });
    }

    postMessage(data) {
      this.started.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
}
