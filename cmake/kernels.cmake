# kernels/: the door (backend.h) and its implementations. SIMD variants are one file each, named by their instruction set;
# they are compiled with it and chosen at run time.
file(GLOB kernel_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.c ${CMAKE_SOURCE_DIR}/kernels/cpu/*.c)
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64")
  list(FILTER kernel_sources EXCLUDE REGEX "_(avx2|avx512|amx)\\.c$")
endif()
add_library(kernels STATIC ${kernel_sources})
target_link_libraries(kernels PUBLIC inferd_flags base PRIVATE inferd_warnings)
# -O3 in release builds: these files are loops over arrays. No -ffast-math: it moves results away from the reference.
if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(kernels PRIVATE $<$<COMPILE_LANGUAGE:C>:-O3>)
else()
  target_compile_options(kernels PRIVATE $<$<COMPILE_LANGUAGE:C>:-O2>) # or the tests under sanitizers take minutes
endif()
# Loops that gcc unrolls because it knows their length after inlining: clang may not, above all under sanitizers.
if(CMAKE_C_COMPILER_ID MATCHES "Clang")
  target_compile_options(kernels PRIVATE $<$<COMPILE_LANGUAGE:C>:-Wno-pass-failed>)
endif()
foreach(source ${kernel_sources})
  if(source MATCHES "_avx2\\.c$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mbmi2")
  elseif(source MATCHES "_avx512\\.c$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
      "-mavx2;-mfma;-mf16c;-mbmi2;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi")
  elseif(source MATCHES "_amx\\.c$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
      "-mavx2;-mfma;-mf16c;-mbmi2;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512vbmi;-mamx-tile;-mamx-int8")
  endif()
endforeach()
# Under ThreadSanitizer the SIMD loops are left out: they touch only what pool.c hands them, and would run 20 times slower.
if(INFERD_SANITIZE MATCHES "thread")
  foreach(source ${kernel_sources})
    if(source MATCHES "_(avx2|avx512|amx)\\.c$")
      set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS "-fno-sanitize=thread")
    endif()
  endforeach()
endif()

# Negative controls (base/planted.h): only the files that hold the planted faults are compiled anew.
set(INFERD_PLANTED_FAULT 0 CACHE STRING "Plant this fault, see base/planted.h (tests only)")
if(INFERD_PLANTED_FAULT)
  set(planted engine/weights_keys.c engine/weights_tensors.c engine/weights_rope.c)
  if(INFERD_PLANTED_FAULT EQUAL 6)
    set(planted kernels/cpu/linear_portable.c kernels/cpu/linear_avx2.c kernels/cpu/linear_avx512.c)
  endif()
  list(TRANSFORM planted PREPEND ${CMAKE_SOURCE_DIR}/)
  set_property(SOURCE ${planted} APPEND PROPERTY COMPILE_DEFINITIONS INFERD_PLANTED_FAULT=${INFERD_PLANTED_FAULT})
endif()

if(INFERD_CUDA)
  enable_language(CUDA)
  set(archives_only ${CMAKE_FIND_LIBRARY_SUFFIXES})
  set(CMAKE_FIND_LIBRARY_SUFFIXES .so .a) # the toolkit is recognised by its shared runtime; ours is the static one
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_FIND_LIBRARY_SUFFIXES ${archives_only})
  set(CMAKE_CUDA_STANDARD 17)
  # The build types say -O2 or -O3 each; ours is below, for all.
  foreach(type RELEASE RELWITHDEBINFO MINSIZEREL)
    string(REGEX REPLACE "-O[0-9s]|-DNDEBUG" "" CMAKE_CUDA_FLAGS_${type} "${CMAKE_CUDA_FLAGS_${type}}")
  endforeach()
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
  add_library(kernels_cuda STATIC ${cuda_sources})
  target_include_directories(kernels_cuda PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(kernels_cuda PRIVATE INFERD_CUDA=1 $<$<BOOL:${INFERD_FAULTS}>:INFERD_FAULTS=1>)
  target_compile_options(kernels_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo -O3 -Werror all-warnings
    -Xcompiler=-fvisibility=hidden,-fno-exceptions>)
  target_link_libraries(kernels_cuda PUBLIC base CUDA::cudart_static ${CMAKE_DL_LIBS})
  target_link_libraries(kernels PUBLIC kernels_cuda)
endif()
