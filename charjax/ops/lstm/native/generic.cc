#include "ffi_handlers.h"
