// A processor with fewer instructions than this one: preloaded into a program, this library hides
// instruction sets from everything that asks the CPUID instruction, as runtimes do before they
// choose their kernels. The kernels then run natively, so results and ratios of times are real.
//
//     CRELU_HIDE=avx512 LD_PRELOAD=./cpuid_mask.so python ...
//
// CRELU_HIDE is one of vnni (8-bit dot products and AMX), avx512 (that and AVX-512), avx2 (all
// beyond SSE4.2 that vectors need). Linux lets a thread trap its own CPUID (arch_prctl(2),
// ARCH_SET_CPUID) where the processor can, and the threads and processes that it starts inherit
// that; where the processor cannot, the program ends with exit code 77 before it begins.

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum
{
    ARCH_SET_CPUID = 0x1012,
    UNSUPPORTED = 77
};

// What is hidden of one register of one leaf, from which level on (1 vnni, 2 avx512, 3 avx2).
typedef struct
{
    uint32_t leaf, subleaf;
    int reg; // 0 eax, 1 ebx, 2 ecx, 3 edx
    uint32_t bits;
    int level;
} Hidden;

#define BIT(n) (1u << (n))

static Hidden const HIDDEN[] = {
    {7, 0, 2, BIT(11), 1},                     // AVX512_VNNI
    {7, 0, 3, BIT(22) | BIT(24) | BIT(25), 1}, // AMX
    {7, 1, 0, BIT(4), 1},                      // AVX_VNNI
    {7, 1, 0, BIT(21), 1},                     // AMX_FP16
    {7, 1, 3, BIT(4) | BIT(10), 1},            // AVX_VNNI_INT8, _INT16
    {7, 0, 1, BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31), 2},
    {7, 0, 2, BIT(1) | BIT(6) | BIT(12) | BIT(14), 2}, // VBMI, VBMI2, BITALG, VPOPCNTDQ
    {7, 0, 3, BIT(2) | BIT(3) | BIT(8) | BIT(23), 2},  // 4VNNIW, 4FMAPS, VP2INTERSECT, FP16
    {7, 1, 0, BIT(5), 2},                              // AVX512_BF16
    {7, 1, 3, BIT(19), 2},                             // AVX10
    {7, 0, 1, BIT(5), 3},                              // AVX2
    {7, 0, 2, BIT(8) | BIT(9) | BIT(10), 3},           // GFNI, VAES, VPCLMULQDQ
    {7, 1, 0, BIT(23), 3},                             // AVX_IFMA
    {1, 0, 2, BIT(12) | BIT(28) | BIT(29), 3},         // FMA, AVX, F16C
};

static int level;

static void answer(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    for (size_t i = 0; i < sizeof HIDDEN / sizeof *HIDDEN; i++)
    {
        Hidden const* h = &HIDDEN[i];
        if (h->leaf == leaf && (h->subleaf == subleaf || leaf == 1) && h->level <= level)
            r[h->reg] &= ~h->bits;
    }
}

// Whether an instruction that the processor refused is CPUID; a fault of memory is none.
static int refused_cpuid(siginfo_t const* info, greg_t const* g)
{
    uint8_t const* code = (uint8_t const*)g[REG_RIP];
    return info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2;
}

static void on_fault(int sig, siginfo_t* info, void* context)
{
    greg_t* g = ((ucontext_t*)context)->uc_mcontext.gregs;
    if (!refused_cpuid(info, g))
    { // a real fault, met again without this
        signal(sig, SIG_DFL);
        return;
    }
    uint32_t r[4];
    answer((uint32_t)g[REG_RAX], (uint32_t)g[REG_RCX], r);
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void)
{
    char const* what = getenv("CRELU_HIDE");
    if (what == NULL)
        return;
    level = !strcmp(what, "vnni") ? 1 : !strcmp(what, "avx512") ? 2 : !strcmp(what, "avx2") ? 3 : 0;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (level == 0 || sigaction(SIGSEGV, &action, NULL)
        || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0))
    {
        fprintf(stderr, "cpuid_mask: cannot hide %s here\n", what);
        _exit(UNSUPPORTED);
    }
}
