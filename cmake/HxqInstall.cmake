# `cmake --install`: libraries, headers, and a package that find_package(hxq) finds.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/hxq)
install(TARGETS hxq hxq_text hxq_compressor EXPORT hxqTargets)
if(TARGET hxq_serve)
  install(TARGETS hxq_serve EXPORT hxqTargets)
endif()
if(NOT SKBUILD)
  install(TARGETS hxq_c EXPORT hxqTargets)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/hxq ${PROJECT_BINARY_DIR}/include/hxq
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT hxqTargets NAMESPACE hxq:: DESTINATION ${package_dir})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/hxqConfig.cmake.in ${PROJECT_BINARY_DIR}/hxqConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/hxqConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/hxqConfig.cmake ${PROJECT_BINARY_DIR}/hxqConfigVersion.cmake
        DESTINATION ${package_dir})
