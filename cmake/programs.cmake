# inferd (server/) and inferctl (client/). server_lib is everything but main.c, for the tests.
file(GLOB server_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/server/*.c)
list(FILTER server_sources EXCLUDE REGEX "/main\\.c$")
if(server_sources)
  add_library(server_lib STATIC ${server_sources})
  target_link_libraries(server_lib PUBLIC engine config kernels base proto_bytes proto_descriptors grpc_core microhttpd
                        OpenSSL::Crypto OpenSSL::SSL PRIVATE inferd_warnings)
  if(EXISTS ${CMAKE_SOURCE_DIR}/server/main.c)
    add_executable(inferd server/main.c)
    target_link_libraries(inferd PRIVATE server_lib inferd_warnings)
  endif()
endif()

file(GLOB client_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/client/*.c)
if(client_sources)
  add_executable(inferctl ${client_sources})
  target_link_libraries(inferctl PRIVATE base proto_bytes grpc_core editline PkgConfig::jansson inferd_warnings)
endif()

# `cmake --install BUILD [--prefix DIR]`: the two programs and the licences of what is in them.
foreach(program inferd inferctl)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME)
  endif()
endforeach()
install(FILES ${CMAKE_SOURCE_DIR}/NOTICE DESTINATION share/doc/inferd)

if(INFERD_STATIC)
  foreach(program inferd inferctl)
    if(TARGET ${program})
      target_link_options(${program} PRIVATE -static-libgcc)
    endif()
  endforeach()
endif()
