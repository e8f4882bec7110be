# proto/**/*.proto -> protobuf-c sources (library `proto`) and descriptor sets for reflection.
file(GLOB_RECURSE proto_files RELATIVE ${CMAKE_SOURCE_DIR}/proto CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/proto/*.proto)
set(proto_out ${CMAKE_BINARY_DIR}/proto)
file(MAKE_DIRECTORY ${proto_out})
set(proto_sources)
foreach(file ${proto_files})
  string(REGEX REPLACE "\\.proto$" "" stem ${file})
  add_custom_command(
    OUTPUT ${proto_out}/${stem}.pb-c.c ${proto_out}/${stem}.pb-c.h
    COMMAND ${PROTOC} --plugin=protoc-gen-c=${PROTOC_C} -I ${CMAKE_SOURCE_DIR}/proto --c_out=${proto_out}
            ${CMAKE_SOURCE_DIR}/proto/${file}
    DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file} VERBATIM)
  list(APPEND proto_sources ${proto_out}/${stem}.pb-c.c)
endforeach()
add_library(proto STATIC ${proto_sources})
target_include_directories(proto SYSTEM PUBLIC ${proto_out})
target_link_libraries(proto PUBLIC inferd_flags PkgConfig::protobufc)
