# Flags of our own code (STYLE.md, build). Generated code links inferd_flags only.
find_package(Threads REQUIRED)
add_library(inferd_flags INTERFACE)
target_include_directories(inferd_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(inferd_flags INTERFACE _POSIX_C_SOURCE=200809L INFERD_VERSION="${PROJECT_VERSION}"
  $<$<BOOL:${INFERD_CUDA}>:INFERD_CUDA=1> $<$<BOOL:${INFERD_FAULTS}>:INFERD_FAULTS=1>)
target_link_libraries(inferd_flags INTERFACE Threads::Threads)

set(hardening -fstack-protector-strong)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64")
  list(APPEND hardening -fcf-protection -fstack-clash-protection)
endif()
if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT INFERD_SANITIZE)
  list(APPEND hardening -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
endif()
target_compile_options(inferd_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C>:-fno-common -ffunction-sections -fdata-sections -ffp-contract=off ${hardening}>)
target_link_options(inferd_flags INTERFACE -Wl,--gc-sections -Wl,-z,relro,-z,now)

if(INFERD_SANITIZE)
  target_compile_options(inferd_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:-fsanitize=${INFERD_SANITIZE} -fno-omit-frame-pointer>)
  target_link_options(inferd_flags INTERFACE -fsanitize=${INFERD_SANITIZE})
  if(INFERD_SANITIZE MATCHES "undefined")
    target_compile_options(inferd_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:-fno-sanitize-recover=undefined>)
  endif()
endif()

add_library(inferd_warnings INTERFACE)
target_compile_options(inferd_warnings INTERFACE $<$<COMPILE_LANGUAGE:C>:
  -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2
  -Wdouble-promotion -Wundef -Werror>)
