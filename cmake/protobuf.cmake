# proto/**/*.proto -> protobuf-c sources, in two flavours:
#   proto        as published (client)
#   proto_bytes  string fields as (length, bytes) (server): protobuf-c's own strings end at the first NUL, and a request's text may
#                hold one. The option is added to a copy in the build directory, so that the published files stay clean.
# And `proto_descriptors`: a C array of all descriptors, for reflection.
file(GLOB_RECURSE proto_files RELATIVE ${CMAKE_SOURCE_DIR}/proto CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/proto/*.proto)
find_path(PROTOBUF_INCLUDE google/protobuf/any.proto REQUIRED)
find_path(PROTOBUF_C_INCLUDE protobuf-c/protobuf-c.proto REQUIRED)
set(proto_imports google/protobuf/any.proto google/protobuf/duration.proto)

set(proto_copy ${CMAKE_BINARY_DIR}/proto_src)
foreach(file ${proto_files})
  file(READ ${CMAKE_SOURCE_DIR}/proto/${file} text)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file})
  string(REGEX REPLACE "(\n *(repeated )?string [a-z_0-9]+ = [0-9]+);" "\\1 [(pb_c_field).string_as_bytes = true];" text "${text}")
  string(REGEX REPLACE "(\npackage [a-z0-9_.]+;)" "\\1\nimport \"protobuf-c/protobuf-c.proto\";" text "${text}")
  file(CONFIGURE OUTPUT ${proto_copy}/${file} CONTENT "${text}" @ONLY) # leaves an unchanged file alone
endforeach()

# A library `name` of C sources generated from `files` in folder `from` (and the imports of Google's own).
function(inferd_proto_library name from)
  set(out ${CMAKE_BINARY_DIR}/${name})
  file(MAKE_DIRECTORY ${out})
  set(sources)
  foreach(file ${proto_files} ${proto_imports})
    string(REGEX REPLACE "\\.proto$" "" stem ${file})
    set(path ${from}/${file})
    if(file IN_LIST proto_imports)
      set(path ${PROTOBUF_INCLUDE}/${file})
    endif()
    add_custom_command(
      OUTPUT ${out}/${stem}.pb-c.c ${out}/${stem}.pb-c.h
      COMMAND ${PROTOC} --plugin=protoc-gen-c=${PROTOC_C} -I ${from} -I ${PROTOBUF_INCLUDE} -I ${PROTOBUF_C_INCLUDE}
              --c_out=${out} ${path}
      DEPENDS ${path} VERBATIM)
    list(APPEND sources ${out}/${stem}.pb-c.c)
  endforeach()
  add_library(${name} STATIC ${sources})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_link_libraries(${name} PUBLIC inferd_flags PkgConfig::protobufc)
endfunction()
inferd_proto_library(proto ${CMAKE_SOURCE_DIR}/proto)
inferd_proto_library(proto_bytes ${proto_copy})

set(descriptor_set ${CMAKE_BINARY_DIR}/descriptors.binpb)
list(TRANSFORM proto_files PREPEND ${CMAKE_SOURCE_DIR}/proto/ OUTPUT_VARIABLE proto_paths)
add_custom_command(OUTPUT ${descriptor_set}
  COMMAND ${PROTOC} -I ${CMAKE_SOURCE_DIR}/proto -I ${PROTOBUF_INCLUDE} --include_imports
          --descriptor_set_out=${descriptor_set} ${proto_paths}
  DEPENDS ${proto_paths} VERBATIM)
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/proto_descriptors.c
  COMMAND ${CMAKE_COMMAND} -DIN=${descriptor_set} -DOUT=${CMAKE_BINARY_DIR}/proto_descriptors.c -DNAME=proto_descriptors
          -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
  DEPENDS ${descriptor_set} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
add_library(proto_descriptors STATIC ${CMAKE_BINARY_DIR}/proto_descriptors.c)
target_link_libraries(proto_descriptors PUBLIC inferd_flags)
