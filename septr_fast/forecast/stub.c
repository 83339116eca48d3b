/* Stands in for libcuda.so.1: answers what Triton's launcher asks, and keeps the last launch. */
#include "cuda.h"
#include <string.h>

#define MOST 256
#define SHARED_MEMORY 232448

typedef struct {
  char name[MOST];
  unsigned int grid[3], block[3], shared, attributes;
  unsigned long long values[MOST];
  unsigned long long launches;
} Launch;

static Launch last;
static int sizes[MOST], count;
static char names[MOST][MOST];
static int known;
static int context;

/* Which sizes in bytes the parameters of the next launch have: the driver reads them from the kernel, the stub cannot. */
void expect(int given, const int *bytes) {
  count = given < MOST ? given : MOST;
  memcpy(sizes, bytes, count * sizeof(int));
}

const Launch *last_launch(void) { return &last; }

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  memset(last.values, 0, sizeof(last.values));
  strncpy(last.name, (const char *)function, MOST - 1);
  last.grid[0] = config->gridDimX, last.grid[1] = config->gridDimY, last.grid[2] = config->gridDimZ;
  last.block[0] = config->blockDimX, last.block[1] = config->blockDimY, last.block[2] = config->blockDimZ;
  last.shared = config->sharedMemBytes, last.attributes = config->numAttrs;
  for (int index = 0; index < count; ++index)
    memcpy(&last.values[index], parameters[index], sizes[index]);
  ++last.launches;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
  *text = "planted";
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *found) {
  *found = (CUcontext)&context;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext given) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice device) { return cuCtxGetCurrent(found); }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? SHARED_MEMORY : 65536;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)image;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  strncpy(names[known % MOST], name, MOST - 1);
  *function = (CUfunction)names[known++ % MOST];
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  memcpy(value, &pointer, sizeof(pointer));
  return CUDA_SUCCESS;
}
