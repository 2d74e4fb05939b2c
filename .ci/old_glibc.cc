// Linked into the kernel of the wheel, with C++'s own library, so that it runs with glibc 2.27, the oldest that jaxlib
// supports: C++'s library of a newer system asks for these two symbols as they are in glibc 2.32 and 2.34.
extern "C" {

// False: always use atomic operations.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

#if defined(__x86_64__)
__asm__(".symver old_pthread_once, pthread_once@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver old_pthread_once, pthread_once@GLIBC_2.17");
#endif
int old_pthread_once(int* control, void (*init)());

// The linker calls this instead of pthread_once (--wrap).
__attribute__((visibility("hidden"))) int __wrap_pthread_once(int* control, void (*init)()) {
  return old_pthread_once(control, init);
}
}
