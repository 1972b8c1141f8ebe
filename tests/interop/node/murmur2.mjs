// murmur2.mjs
export function partitionOf(key, partitions) {
  const data = Buffer.from(key), mul = Math.imul, m = 0x5bd1e995, end = data.length & ~3;
  let h = 0x9747b28c ^ data.length;
  for (let at = 0; at < end; at += 4) {
    const k = mul(data.readInt32LE(at), m);
    h = mul(h, m) ^ mul(k ^ (k >>> 24), m);
  }
  for (let at = data.length - 1; at >= end; at--) h ^= data[at] << (8 * (at - end));
  if (end < data.length) h = mul(h, m);
  h = mul(h ^ (h >>> 13), m);
  return ((h ^ (h >>> 15)) & 0x7fffffff) % partitions;
}
