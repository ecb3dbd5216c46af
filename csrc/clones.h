// One binary for every x86-64 machine.

#pragma once

// The loader picks the widest clone the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FANGYAN_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FANGYAN_CLONES
#endif
// What a clone calls is compiled with it, for its processor.
#define FANGYAN_MEMBER inline __attribute__((always_inline))
#define FANGYAN_INLINE static FANGYAN_MEMBER
