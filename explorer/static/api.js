// What the page asks of the service; a failure is an Error with a sentence for the reader.

async function answer(path, signal) {
  const response = await fetch(path, { signal });
  if (response.ok) return response;
  let why = `${response.status} ${response.statusText}`;
  try {
    why = (await response.json()).detail ?? why;
  } catch {
    // not JSON: the status line has to do
  }
  throw new Error(why);
}

export const json = async (path, signal) => (await answer(path, signal)).json();
export const bytes = async (path, signal) => (await answer(path, signal)).arrayBuffer();

export const ofPatch = (id, what, query = {}) => {
  return `/api/patch${what}?${new URLSearchParams({ patch_id: id, ...query })}`;
};

// Runs the newest of several calls: an older one that is still under way is given up.
export function latest(work) {
  let controller = null;
  return async (...given) => {
    controller?.abort();
    const own = (controller = new AbortController());
    try {
      return await work(own.signal, ...given);
    } catch (error) {
      if (error.name === "AbortError") return undefined;
      throw error;
    }
  };
}
