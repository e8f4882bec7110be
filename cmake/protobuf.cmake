# proto/**/*.proto -> `proto_bytes`: protobuf-c sources whose string fields are (length, bytes): protobuf-c's own strings end at the
# first NUL, and a text may hold one. The option is added to a copy in the build directory, so that the published files stay clean.
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
  if(text MATCHES "string_as_bytes")
    string(REGEX REPLACE "(\npackage [a-z0-9_.]+;)" "\\1\nimport \"protobuf-c/protobuf-c.proto\";" text "${text}")
  endif()
  file(CONFIGURE OUTPUT ${proto_copy}/${file} CONTENT "${text}" @ONLY) # leaves an unchanged file alone
endforeach()

set(proto_out ${CMAKE_BINARY_DIR}/proto_bytes)
file(MAKE_DIRECTORY ${proto_out})
set(proto_sources)
foreach(file ${proto_files} ${proto_imports})
  string(REGEX REPLACE "\\.proto$" "" stem ${file})
  set(path ${proto_copy}/${file})
  if(file IN_LIST proto_imports) # Google's own, as installed
    set(path ${PROTOBUF_INCLUDE}/${file})
  endif()
  add_custom_command(
    OUTPUT ${proto_out}/${stem}.pb-c.c ${proto_out}/${stem}.pb-c.h
    COMMAND ${PROTOC} --plugin=protoc-gen-c=${PROTOC_C} -I ${proto_copy} -I ${PROTOBUF_INCLUDE} -I ${PROTOBUF_C_INCLUDE}
            --c_out=${proto_out} ${path}
    DEPENDS ${path} VERBATIM)
  list(APPEND proto_sources ${proto_out}/${stem}.pb-c.c)
endforeach()
add_library(proto_bytes STATIC ${proto_sources})
target_include_directories(proto_bytes SYSTEM PUBLIC ${proto_out})
target_link_libraries(proto_bytes PUBLIC inferd_flags PkgConfig::protobufc)

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
