// The page "Try it": what the reader sees and does. try-worker.js computes.
(() => {
  const app = document.getElementById("try-app");
  const base = new URL(".", document.currentScript.src);
  const find = (name) => app.querySelector(`[data-try="${name}"]`);
  const [status, bar, result, stage, canvas] =
    ["status", "progress", "result", "stage", "canvas"].map(find);
  const MOST = 50; // megapixels of a photo

  if (location.protocol === "file:") {
    status.textContent =
      "Browsers run this page only from a server. In the course's folder, run: " +
      "python3 -m http.server --directory build/site, then open http://localhost:8000/try.html";
    return;
  }

  let worker = null, id = 0, network = null, shown = null, photo = null;
  let stem = "photo"; // of the names of what can be downloaded

  function say(text, isProblem = false) {
    status.textContent = text;
    status.classList.toggle("try-problem", isProblem);
  }

  function busy(isBusy) {
    find("busy").hidden = !isBusy;
    find("bytes").textContent = "";
    bar.removeAttribute("value"); // moves to and fro until there is a share
    result.setAttribute("aria-busy", isBusy);
  }

  const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
  const percent = (share) => (share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`);

  /** Return an image that is loaded, or null; the browser reads only its size at first. */
  function view(file) {
    return new Promise((done) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => {
        URL.revokeObjectURL(image.src);
        done(null);
      };
      image.src = URL.createObjectURL(file);
    });
  }

  async function segment(file) {
    const mine = ++id;
    say(`Reading ${file.name}.`);
    const image = await view(file);
    if (mine !== id) return;
    const pixels = image ? image.naturalWidth * image.naturalHeight : 0;
    if (!pixels || pixels > MOST * 1e6) {
      busy(false);
      const reason = pixels
        ? `has ${(pixels / 1e6).toFixed(0)} megapixels, and this page takes up to ${MOST}. Make it smaller first.`
        : "is not an image that your browser can read. Use a JPEG, PNG, or WebP file.";
      return say(`${file.name} ${reason}`, true);
    }
    photo = file;
    image.alt = `Your photo, ${file.name}`;
    stage.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    if (shown) URL.revokeObjectURL(shown.src);
    stage.replaceChildren((shown = image), canvas);
    canvas.hidden = find("about").hidden = true;
    result.hidden = false;
    busy(true);
    start().postMessage({
      kind: "segment", id: mine, photo: file, file: network,
      address: new URL("try/model.onnx", base).href, cpuOnly: find("cpu").checked,
    });
  }

  function start() {
    if (worker) return worker;
    worker = new Worker(new URL("try-worker.js", base), { type: "module" });
    worker.onmessage = ({ data }) => answer[data.kind](data);
    worker.onerror = () => {
      worker = null;
      answer.problem({ id, text: "This browser can't run the page's worker. Update it, or use another one." });
    };
    return worker;
  }

  const answer = {
    loading: () => say("Downloading the network, once."),
    preparing: () => {
      busy(true);
      say("Preparing the network.");
    },
    progress: ({ loaded, total }) => {
      bar.max = total;
      bar.value = loaded;
      find("bytes").textContent = `${megabytes(loaded)} of ${megabytes(total)} MB`;
    },
    segmenting: ({ runtime }) => {
      busy(true);
      say(`Segmenting your photo with ${runtime}.`);
    },
    problem: ({ id: which, text }) => {
      if (which !== id) return;
      busy(false);
      say(text, true);
    },
    overlay: ({ blob }) => {
      save(blob, `${stem}_overlay.jpg`);
      say("The overlay is saved.");
    },
    result: (data) => {
      if (data.id !== id) return;
      busy(false);
      show(data);
    },
  };

  function show({ classes, overlay, seconds, size, height, width, runtime, maskFile }) {
    [canvas.width, canvas.height] = [overlay.width, overlay.height];
    canvas.getContext("2d").putImageData(overlay, 0, 0);
    const list = classes.map(({ name, share }) => `${name} ${percent(share)}`).join(", ");
    canvas.setAttribute("aria-label", `The photo's segmentation: ${list}`);
    find("legend").replaceChildren(...classes.map(({ name, color, share }) => {
      const item = document.createElement("li");
      item.style.setProperty("--color", `rgb(${color})`);
      item.append(name, Object.assign(document.createElement("span"), { textContent: percent(share) }));
      return item;
    }));
    stem = photo.name.replace(/\.[^.]+$/, "") || "photo";
    const link = find("mask");
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(maskFile);
    link.download = `${stem}_mask.png`;
    canvas.hidden = find("about").hidden = false;
    say(
      `Done in ${seconds.toFixed(1)} seconds with ${runtime}. Your photo has ${height} × ${width} pixels, ` +
        `and the network sees it at ${size[0]} × ${size[1]}. The largest class is ${classes[0].name}.`
    );
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // What the reader does

  for (const name of ["choose", "capture"]) {
    find(name).addEventListener("change", ({ target }) => {
      if (target.files[0]) segment(target.files[0]);
      target.value = ""; // the same photo can be chosen again
    });
  }
  find("example").addEventListener("click", async () => {
    const response = await fetch(new URL("try/example.png", base)).catch(() => null);
    if (!response?.ok) return say("The example could not be downloaded.", true);
    segment(new File([await response.blob()], "example.png", { type: "image/png" }));
  });
  find("opacity").addEventListener("input", ({ target }) => {
    canvas.style.opacity = target.value / 100;
  });
  find("overlay").addEventListener("click", () => {
    say("Writing the overlay.");
    start().postMessage({ kind: "overlay", id, opacity: find("opacity").value / 100 });
  });
  find("network").addEventListener("change", ({ target }) => {
    network = target.files[0] ?? null;
    if (photo) segment(photo);
    else say(network ? `The next photo goes to ${network.name}.` : "The next photo goes to the course's network.");
  });
  find("cpu").addEventListener("change", () => photo && segment(photo));

  const drop = find("drop");
  const over = (isOver) => drop.classList.toggle("try-over", isOver);
  app.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  app.addEventListener("dragleave", () => over(false));
  app.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const file = event.dataTransfer.files[0];
    if (file) segment(file);
    else say("That was no file. Drop a photo from a folder.", true);
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData?.files[0]) segment(clipboardData.files[0]);
  });

  app.classList.add("try-ready");
  say("Nothing is downloaded until you choose a photo.");
})();
